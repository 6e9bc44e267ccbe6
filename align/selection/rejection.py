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
    `highest` is the highest score among them when the pass begins, and end in the midst of a pass when `count` are accepted. The
    highest is always accepted, so there are at most `count` passes. A small beta accepts nearly the best ones, a large beta
    nearly any.

    Args:
        scores: finite scores of different completions, in the order they were sampled.
        beta: in the unit of the scores, above 0.
        count: most candidates to accept; with fewer candidates all are.
        generator: what the draws come from: one number per candidate and pass.
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
        highest = max(scores[index] for index in remaining)
        rejected = []
        for index in remaining:
            if len(accepted) < count and generator.random() < math.exp((scores[index] - highest) / beta):
                accepted.append(index)
            else:
                rejected.append(index)
        remaining = rejected
    return accepted
