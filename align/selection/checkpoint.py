"""The choice of a checkpoint, or of a model: the one whose completions score highest, not the one with the lowest loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from align.records import Drop

K = TypeVar("K", int, str)
"""An epoch, or what a model is called."""


class ScoredEverywhere(NamedTuple, Generic[K]):
    """Scores of the prompts that every checkpoint or model has a finite score for."""

    scores: dict[K, dict[str, float]]
    """Epoch → prompt id → mean score, the prompts in one order."""
    drops: list[Drop]
    """The other prompts, once each."""


def scored_everywhere(scores: Mapping[K, Mapping[str, float | None]], *, what: str = "epoch") -> ScoredEverywhere[K]:
    """Leave out every prompt that has no finite score at one of the checkpoints. The rest can be compared.

    Args:
        scores: epoch → prompt id → mean score; None, NaN or an infinity where there is none. A prompt that an epoch does not have
            counts as one without a score.
        what: what the keys are, for the drops.
    """
    drops: list[Drop] = []
    kept: list[str] = []
    # A dict keeps the order of first appearance; a set would order the drops differently in every process.
    for prompt_id in dict.fromkeys(prompt_id for of_epoch in scores.values() for prompt_id in of_epoch):
        lacking = [epoch for epoch, of_epoch in scores.items() if not _is_finite(of_epoch.get(prompt_id))]
        if lacking:
            detail = f"no finite score at {what} {', '.join(map(str, lacking))}"
            drops.append(Drop(id=prompt_id, drop_reason="nonfinite_score", detail=detail))
        else:
            kept.append(prompt_id)
    finite = {
        epoch: {prompt_id: score for prompt_id in kept if (score := of_epoch[prompt_id]) is not None}
        for epoch, of_epoch in scores.items()
    }
    return ScoredEverywhere(finite, drops)


def highest_score_epoch(mean_scores: Mapping[int, float]) -> int:
    """The epoch with the highest mean score; among equal ones, the earliest. There must be one, and every mean must be finite."""
    return min(mean_scores, key=lambda epoch: (-mean_scores[epoch], epoch))


def lowest_loss_epoch(losses: Mapping[int, float]) -> int:
    """The epoch with the lowest loss; among equal ones, the earliest. There must be one, and every loss must be finite."""
    return min(losses, key=lambda epoch: (losses[epoch], epoch))


def _is_finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)
