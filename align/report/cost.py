"""What each compared model cost: the stages that it was made from, and which of them other models need too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from align.store.artifact import INPUT_STAGE, Artifact


@dataclass(frozen=True)
class StageCost:
    """One finished result. A recipe may have several names for it, because equal stages run once."""

    names: list[str]
    stage: str
    models: list[str]
    """The compared models that need it."""
    seconds: float
    """Wall time, over all attempts."""
    sampled_tokens: int | None
    """Tokens that an engine sampled; None where the manifest has no such number."""
    trained_tokens: int | None
    """Tokens of the packed rows, one pass over them; None where the manifest has no such number."""
    episodes: int | None
    """Completions that PPO sampled while it learned; None for other stages."""


@dataclass(frozen=True)
class ModelCost:
    """Seconds of everything that one model was made from."""

    own: float
    """Of its last stage."""
    alone: float
    """Of earlier stages that no other compared model needs."""
    shared: float
    """Of earlier stages that other compared models need too."""
    sampled_tokens: int
    """Tokens sampled in all of them, without those of episodes."""
    episodes: int
    """Completions whose tokens no manifest counts."""

    @property
    def total(self) -> float:
        """Seconds to make this model from nothing."""
        return self.own + self.alone + self.shared


def stage_costs(artifacts: Sequence[Artifact], models: Sequence[str]) -> list[StageCost]:
    """Every result that a compared model was made from, once, in the order of the recipe; inputs cost nothing."""
    by_fingerprint: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        if artifact.manifest.stage != INPUT_STAGE:
            by_fingerprint.setdefault(artifact.fingerprint, []).append(artifact)
    needs = {model: _needed(model, by_fingerprint) for model in models}
    costs = []
    for fingerprint, (first, *others) in by_fingerprint.items():
        users = [model for model in models if fingerprint in needs[model]]
        metrics = first.manifest.metrics
        if users:
            costs.append(
                StageCost(
                    [first.name, *(other.name for other in others)],
                    first.manifest.stage,
                    users,
                    first.manifest.seconds,
                    metrics.get("new_tokens"),
                    metrics.get("tokens"),
                    metrics.get("episodes"),
                )
            )
    return costs


def model_costs(costs: Sequence[StageCost], models: Sequence[str]) -> dict[str, ModelCost]:
    """Sums by model; a model that was not made here is absent."""
    found = {}
    for model in models:
        mine = [cost for cost in costs if model in cost.models]
        if mine:
            own = [cost for cost in mine if model in cost.names]
            earlier = [cost for cost in mine if model not in cost.names]
            found[model] = ModelCost(
                sum(cost.seconds for cost in own),
                sum(cost.seconds for cost in earlier if len(cost.models) == 1),
                sum(cost.seconds for cost in earlier if len(cost.models) > 1),
                sum(cost.sampled_tokens or 0 for cost in mine),
                sum(cost.episodes or 0 for cost in mine),
            )
    return found


def _needed(model: str, by_fingerprint: Mapping[str, Sequence[Artifact]]) -> set[str]:
    """Fingerprints of the results that a model was made from, its own among them."""
    needed: set[str] = set()
    ahead = [same[0].fingerprint for same in by_fingerprint.values() if any(artifact.name == model for artifact in same)]
    while ahead:
        fingerprint = ahead.pop()
        # An input is in no group, and a result is followed once, however many paths lead to it.
        if fingerprint in by_fingerprint and fingerprint not in needed:
            needed.add(fingerprint)
            ahead += by_fingerprint[fingerprint][0].manifest.inputs.values()
    return needed
