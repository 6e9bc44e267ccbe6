"""Statistical rejection sampling: candidates of a policy, thinned until they are draws of the policy that a reward would give.

RSO, Liu et al. 2024, "Statistical Rejection Sampling Improves Preference Optimization", Algorithm 1. Not to be mixed up with
rejection-sampling fine-tuning, which keeps the best of n.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def accept_candidates(scores: Sequence[float], *, beta: float, count: int, generator: random.Random) -> list[int]:
    """Indices of the accepted candidates, in the order they were accepted.

    Passes over the candidates that are not accepted yet accept each with probability exp((score - highest) / beta), where
    `highest` is the highest score among them when the pass begins. A pass ends early once `count` are accepted. The highest is
    always accepted, so there are at most `count` passes. With a small beta almost only the best are accepted, with a large beta
    almost any.

    Args:
        scores: finite scores of different completions, in the order they were sampled.
        beta: in the unit of the scores, above 0.
        count: how many candidates to accept at most; if there are fewer, all are accepted.
        generator: source of the draws, one number per candidate and pass.
    Raises:
        ValueError: if `beta` is not a number above 0 or `count` is negative.
    """
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta must be a number above 0, not {beta}")
    if count < 0:
        raise ValueError(f"count must not be negative, not {count}")
    accepted: list[int] = []
    remaining = list(range(len(scores)))
    while remaining and len(accepted) < count:
        # Taken anew in every pass, as in the paper: with the first highest, a small beta would accept almost nothing further.
        highest = max(scores[index] for index in remaining)
        rejected = []
        for index in remaining:
            # random() is below 1 and exp(0) is 1: the highest is accepted in every pass, so the loop ends.
            if len(accepted) < count and generator.random() < math.exp((scores[index] - highest) / beta):
                accepted.append(index)
            else:
                rejected.append(index)
        remaining = rejected
    return accepted
