"""Completions beside those of other prompts."""

from __future__ import annotations

import pytest

from align.data.encoding import EncodedInstruction
from align.training.pairwise.rows import beside_others


@pytest.mark.parametrize("prompts", [[1, 2], [1, 1, 1, 1, 2], [1, 2, 3, 1, 2, 3], list(range(20))])
@pytest.mark.parametrize("seed", range(5))
def test_every_completion_stands_beside_one_of_another_prompt(prompts: list[int], seed: int) -> None:
    rows = [EncodedInstruction(str(number), [prompt], [number + 100, 2]) for number, prompt in enumerate(prompts)]
    pairs = beside_others(rows, max_tokens=3, seed=seed)
    assert [(pair.id, pair.prompt_token_ids, pair.chosen_token_ids) for pair in pairs] == [
        (row.id, row.prompt_token_ids, row.completion_token_ids) for row in rows
    ]
    for pair in pairs:
        assert [prompts[pair.rejected_token_ids[0] - 100]] != pair.prompt_token_ids
    assert pairs == beside_others(rows, max_tokens=3, seed=seed)


def test_the_other_completion_is_cut_where_it_would_be_too_long() -> None:
    rows = [EncodedInstruction("a", [1, 1, 1, 1], [5]), EncodedInstruction("b", [2], [6, 6, 6, 6])]
    assert [pair.rejected_token_ids for pair in beside_others(rows, max_tokens=5, seed=1)] == [[6], [5]]
