"""Best of n without training: what a model scores when n completions are drawn per prompt and the best by one scorer is kept.

The result is the exact expectation over all subsets of n of a prompt's N candidates, so nothing is sampled again. All n
(1, 2, 4, …) use the same candidates, and no single lucky draw decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.records import ScoredCandidate
from align.report.statistics import FloatArray


@dataclass(frozen=True)
class BestOfPool:
    """The baseline's candidates that best of n chooses from."""

    sizes: Sequence[int]
    """The n, each at least 1 and at most the number of candidates per prompt."""
    scorer: str
    """Name of the scorer that chooses."""
    candidates: Sequence[ScoredCandidate]
    """As many for every prompt; joined to the other models' answers by `prompt_id`."""


def best_of_probabilities(scores: FloatArray, n: int) -> FloatArray:
    """Probability of every candidate to be the best of n, drawn without replacement from the N candidates of its prompt.

    The candidate of rank k (1 is the best) is the best of C(N − k, n − 1) of the C(N, n) subsets. Candidates with equal scores
    share the mean of their ranks' probabilities, so that their order does not matter. A candidate without a finite score ranks
    last and is never chosen: the probabilities are those among the subsets that hold at least one finite score.

    Args:
        scores: [prompts, candidates], of the scorer that chooses; NaN where there is no score.
        n: from 1 to the number of candidates.
    Returns:
        [prompts, candidates], each row with sum 1; a row without a finite score is all zeros.
    Raises:
        ValueError: if n is out of bounds.
    """
    total = scores.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} needs 1 ≤ n ≤ {total}, the number of candidates")
    # The other n - 1 of such a subset come from the total - rank candidates that rank lower.
    subsets_won = [math.comb(total - rank, n - 1) for rank in range(1, total + 1)]
    probabilities = np.zeros(scores.shape)
    for row, chances in zip(scores, probabilities, strict=True):
        finite = np.flatnonzero(np.isfinite(row))
        # Only finite scores are ranked; a NaN would be sorted somewhere without a meaning.
        order = finite[np.argsort(-row[finite], kind="stable")]
        for value in np.unique(row[order]):
            ranks = np.flatnonzero(row[order] == value)
            # Whole numbers until here: where all have the same chance, as for n = 1, they get the same float.
            chances[order[ranks]] = sum(subsets_won[rank] for rank in ranks) / len(ranks)
        # Subsets without any finite score are left out, so the rest must be scaled to sum to 1.
        if chances.any():
            chances /= chances.sum()
    return probabilities


def expectation(values: FloatArray, probabilities: FloatArray) -> FloatArray:
    """Mean of each prompt's values under the probabilities of its candidates.

    Args:
        values: [prompts, candidates]; NaN where there is none: such a candidate is left out of the mean.
        probabilities: [prompts, candidates], not negative.
    Returns:
        [prompts]; NaN where no candidate that can be chosen has a value.
    """
    # Relative to the largest, so that equal probabilities give the plain mean to the last digit: best of 1 is the baseline.
    largest = probabilities.max(axis=1, keepdims=True)
    weights = np.where(np.isfinite(values), probabilities / np.where(largest > 0, largest, 1.0), 0.0)
    totals = weights.sum(axis=1)
    sums = (weights * np.where(np.isfinite(values), values, 0.0)).sum(axis=1)
    means: FloatArray = np.divide(sums, totals, out=np.full(len(values), np.nan), where=totals > 0)
    return means


def best_of_kl_bound(n: int) -> float:
    """ln n − (n − 1)/n, in nats: an upper bound of the KL of best of n to the model that it samples from.

    Stiennon et al. 2020 and Nakano et al. 2021 use it as the KL; Beirami et al. 2024, "Theoretical guarantees on the best-of-n
    alignment policy", show that it is an upper bound.
    """
    return math.log(n) - (n - 1) / n
