"""pass@k: the chance that at least one of k completions of a prompt is right."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from align.config.base import StrictModel
from align.report.statistics import FloatArray


class PassAt(StrictModel):
    """What pass@k was computed from."""

    k: list[int] = Field(min_length=1)
    """The k, each at most the number of candidates per prompt."""
    scorer: str
    """The scorer that says which completion is right."""
    score: float
    """A completion is right if it has at least this score."""

    @property
    def names(self) -> dict[str, int]:
        """What each pass@k is called in tables and results, with its k."""
        return {pass_name(k): k for k in self.k}


def pass_name(k: int) -> str:
    """What pass@k is called."""
    return f"pass@{k}"


def pass_at_k(scores: FloatArray, k: int, *, pass_score: float) -> FloatArray:
    """Chance that at least one of k completions is right, for every prompt: 1 − C(n − c, k) / C(n, k).

    Of the n completions of a prompt that have a score, c are right. The estimate is the share of all subsets of k that hold a
    right one, so it is unbiased; 1 − (1 − c/n)^k is not. Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    eq. 1. For k = 1 it is c/n.

    Args:
        scores: [prompts, candidates]; NaN where there is no score.
        k: at least 1.
        pass_score: a completion is right if its score is at least this.
    Returns:
        [prompts], between 0 and 1; NaN where fewer than k completions have a score.
    """
    values = np.full(len(scores), np.nan)
    for index, row in enumerate(scores):
        n, wrong = int(np.isfinite(row).sum()), int((row < pass_score).sum())
        if n >= k:
            subsets = math.comb(n, k)
            # Whole numbers until the division: products of fractions would round.
            values[index] = (subsets - math.comb(wrong, k)) / subsets
    return values
