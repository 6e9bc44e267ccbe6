"""Completions beside those of other prompts."""

from __future__ import annotations

import numpy as np
import pytest

from align.data.encoding import EncodedInstruction, EncodedPreference
from align.training.pairwise.rows import beside_other, other_of


@pytest.mark.parametrize("prompts", [[1, 2], [1, 1, 1, 1, 2], [1, 2, 3, 1, 2, 3], list(range(20))])
@pytest.mark.parametrize("seed", range(5))
def test_every_completion_stands_beside_one_of_another_prompt(prompts: list[int], seed: int) -> None:
    other = other_of(prompts, seed=seed)
    assert len(other) == len(prompts)
    assert all(prompts[place] != prompts[row] for row, place in enumerate(other))
    assert other.tolist() == other_of(prompts, seed=seed).tolist()


def test_the_other_completion_is_cut_where_it_would_be_too_long() -> None:
    rows = [EncodedInstruction("a", [1, 1, 1, 1], [5]), EncodedInstruction("b", [2], [6, 6, 6, 6])]
    pairs = [beside_other(rows, np.array([1, 0]), place, max_tokens=5) for place in (0, 1)]
    assert pairs == [EncodedPreference("a", [1, 1, 1, 1], [5], [6]), EncodedPreference("b", [2], [6, 6, 6, 6], [5])]
