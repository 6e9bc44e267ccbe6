"""The layout, worked by hand; that the numbers are those of rows of their own is in tests/invariants/test_scoring.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from align.models.attention import IMPLEMENTATION
from align.scoring.shared_prompt import Row, lay_out, row_units, unit_tokens

TAKES_SEGMENTS = SimpleNamespace(config=SimpleNamespace(_attn_implementation=IMPLEMENTATION))
NEEDS_A_MASK = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))


def test_completions_continue_the_prompt_before_them() -> None:
    row = lay_out([([1, 2, 3], [10, 11]), ([1, 2, 3], [20, 21, 22]), ([4, 5], [30])])
    assert row.input_ids.tolist() == [[1, 2, 3, 10, 11, 20, 21, 22, 4, 5, 30]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2]]
    assert row.segments[0, 0].tolist() == [[5, 0, 0], [3, 0, 3], [3, 0, 0]]
    assert row.last.tolist() == [4, 7, 10]
    # The state of the prompt's last token predicts the first token of both completions.
    assert row.sources.tolist() == [2, 3, 2, 5, 6, 9]
    assert row.targets.tolist() == [10, 11, 20, 21, 22, 30]
    assert row.numbers.tolist() == [0, 0, 1, 1, 1, 2]


def test_empty_completions_end_with_their_prompt() -> None:
    row = lay_out([([1, 2], []), ([1, 2], [10]), ([1, 2], [])])
    assert row.input_ids.tolist() == [[1, 2, 10]]
    assert row.segments[0, 0].tolist() == [[2, 0, 0], [1, 0, 2]]
    assert row.last.tolist() == [1, 2, 1]
    assert (row.sources.tolist(), row.numbers.tolist()) == ([1], [1])


def test_without_a_prompt_nothing_is_shared_and_the_first_token_is_not_predicted() -> None:
    row = lay_out([([], [10, 11]), ([], [20])])
    assert row.segments[0, 0].tolist() == [[2, 0, 0], [1, 0, 0]]
    assert row.position_ids.tolist() == [[0, 1, 0]]
    assert (row.sources.tolist(), row.targets.tolist(), row.numbers.tolist()) == ([0], [11], [0])


ROWS: list[Row] = [([1, 2, 3], [10]), ([4], [20, 21]), ([1, 2, 3], [11, 12]), ([], [30]), ([], [31]), ([1, 2, 3], [13, 14, 15])]


@pytest.mark.parametrize(
    ("batch_tokens", "units"),
    [(100, [[0, 2, 5], [1], [3], [4]]), (8, [[0, 2], [1], [3], [4], [5]]), (1, [[0], [1], [2], [3], [4], [5]])],
)
def test_rows_of_one_prompt_are_a_unit_up_to_the_tokens_of_a_batch(batch_tokens: int, units: list[list[int]]) -> None:
    found = row_units(TAKES_SEGMENTS, ROWS, batch_tokens)
    assert found == units
    assert all(unit_tokens(ROWS, unit) <= batch_tokens or len(unit) == 1 for unit in found)
    assert unit_tokens(ROWS, units[0]) == 3 + sum(len(ROWS[number][1]) for number in units[0])


def test_models_that_need_a_mask_get_a_row_for_each() -> None:
    assert row_units(NEEDS_A_MASK, ROWS, 100) == [[number] for number in range(len(ROWS))]
