"""One score from those of several reward models, and how much they disagree.

Coste et al. 2023 (arXiv 2310.02743) and Eisenstein et al. 2023 (arXiv 2312.09244): an ensemble is harder to deceive than each of
its members, but not impossible to deceive.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from align.config.sections import EnsembleScorer


class Combined(NamedTuple):
    """The scores of some candidates, in their order; None where a member gave no finite score."""

    scores: list[float | None]
    disagreement: list[float | None]
    """Standard deviation of the members' scores (population)."""


def combine_members(scorer: EnsembleScorer, members: Sequence[Sequence[float | None]]) -> Combined:
    """Combine the members' scores.

    Args:
        scorer: how.
        members: [members][candidates]; not empty.
    """
    scores: list[float | None] = []
    disagreement: list[float | None] = []
    for row in zip(*members, strict=True):
        values = [value for value in row if value is not None and math.isfinite(value)]
        if len(values) < len(row):  # the others' mean would not compare with the means of other candidates
            scores.append(None)
            disagreement.append(None)
            continue
        mean, deviation = statistics.fmean(values), statistics.pstdev(values)
        weight = scorer.deviation_weight
        scores.append(min(values) if scorer.combine == "min" else mean - weight * deviation if weight else mean)
        disagreement.append(deviation)
    return Combined(scores, disagreement)
