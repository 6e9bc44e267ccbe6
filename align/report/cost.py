"""What each compared model cost: the stages that it was made from, and which of them other models need too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from align.config.base import StrictModel
from align.report.compute import Parameters, parameters_of, stage_flops
from align.store.artifact import INPUT_STAGE, Artifact, Manifest


class Cost(StrictModel):
    """What a row needed. A model is made once; best of n pays for every answer instead.

    A model's path are the stages that it was made from and the baseline was not; the baseline's are all that it was made from.
    Stages with one fingerprint ran once and count once. The comparison itself does not count.
    """

    per_answer: bool = False
    """Whether the numbers are of one answer, as for best of n, and not of making a model."""
    seconds: float | None = Field(ge=0)
    """Wall time of the path; null for best of n."""
    own_seconds: float | None = Field(default=None, ge=0)
    """The part of `seconds` that is of the model's own stage."""
    shared_seconds: float | None = Field(default=None, ge=0)
    """The part of `seconds` that is of stages in the path of another compared model too, and was paid once for all of them."""
    sampled_tokens: float | None = Field(ge=0)
    """Tokens that engines sampled; null where a stage did not record them."""
    trained_tokens: float | None = Field(ge=0)
    """Tokens of the rows that were trained on, prompts included, times the passes over them; null where not recorded."""
    scored_completions: float | None = Field(ge=0)
    """Completions that got scores; null where not recorded."""
    flops: float | None = Field(default=None, ge=0)
    """Estimated floating-point operations; null where not known, and for best of n."""
    memory_bytes: int | None = Field(default=None, ge=0)
    """Highest peak of memory among the stages; null where not known."""
    total_seconds: float | None = Field(default=None, ge=0)
    """Wall time of everything that the model was made from, also what the baseline was made from; null for best of n."""
    total_flops: float | None = Field(default=None, ge=0)
    """Estimated floating-point operations of the same; null where not known, and for best of n."""
    trials: float = Field(default=1, ge=1)
    """Models that were made to keep the best of them: the trials of the path's sweeps together; 1 without."""

    @property
    def alone_seconds(self) -> float:
        """Of earlier stages that no other compared model needs."""
        return round((self.seconds or 0.0) - (self.own_seconds or 0.0) - (self.shared_seconds or 0.0), 3)


@dataclass(frozen=True)
class StageCost:
    """One finished result. A recipe may have several names for it, because equal stages run once.

    A number is 0 where the stage does nothing of the kind, and None where its manifest does not say.
    """

    fingerprint: str
    names: list[str]
    stage: str
    models: list[str]
    """The compared models that were made from it."""
    seconds: float
    """Wall time, over all attempts."""
    sampled_tokens: int | None
    trained_tokens: int | None
    scored_completions: int | None
    flops: float | None
    memory_bytes: int | None
    trials: int = 0
    """Models that a choice was made among."""


def stage_costs(artifacts: Sequence[Artifact], models: Sequence[str], parameters: Parameters = parameters_of) -> list[StageCost]:
    """Every result that a compared model was made from, once, in the order of the recipe; inputs cost nothing."""
    by_fingerprint = {artifact.fingerprint: artifact for artifact in artifacts}
    names: dict[str, list[str]] = {}
    for artifact in artifacts:
        if artifact.manifest.stage != INPUT_STAGE:
            names.setdefault(artifact.fingerprint, []).append(artifact.name)
    needs = {model: made_from(model, artifacts, by_fingerprint) for model in models}
    return [
        StageCost(
            fingerprint,
            same,
            manifest.stage,
            users,
            manifest.seconds,
            _sampled(manifest),
            manifest.metrics.get("trained_tokens") if "learning_rate" in manifest.config else 0,
            _scored(manifest),
            stage_flops(manifest, by_fingerprint, parameters),
            manifest.peak_memory_bytes or None,
            0 if manifest.chosen_input is None else len(manifest.config["models"]),
        )
        for fingerprint, same in names.items()
        if (users := [model for model in models if fingerprint in needs[model]])
        and (manifest := by_fingerprint[fingerprint].manifest)
    ]


def model_costs(costs: Sequence[StageCost], models: Sequence[str], baseline: str) -> dict[str, Cost]:
    """Costs by model; a model that was not made here is absent."""
    whole = {model: [cost for cost in costs if model in cost.models] for model in models}
    # What is left of nothing is everything: a model that the baseline was made from counts as the baseline does.
    paths = {model: [cost for cost in path if baseline not in cost.models] or path for model, path in whole.items()}
    return {model: _cost_of(model, path, paths, whole[model]) for model, path in paths.items() if path}


def mean_cost(costs: Sequence[Cost | None]) -> Cost | None:
    """Of the seeds of a method: the mean of every number and the highest peak; None if a seed has no cost."""
    known = [cost for cost in costs if cost is not None]
    if not known or len(known) < len(costs):
        return None
    rows = [cost.model_dump(exclude={"per_answer", "memory_bytes"}) for cost in known]
    sums = {name: _sum(row[name] for row in rows) for name in rows[0]}
    means = {name: None if total is None else total / len(known) for name, total in sums.items()}
    return Cost.model_validate({**means, "memory_bytes": _peak(cost.memory_bytes for cost in known)})


def answer_cost(n: int, tokens: float) -> Cost:
    """Of an answer that is the best of `n`, each of `tokens` in the mean."""
    return Cost(per_answer=True, seconds=None, sampled_tokens=n * tokens, trained_tokens=0, scored_completions=n)


def _cost_of(model: str, path: Sequence[StageCost], paths: Mapping[str, Sequence[StageCost]], whole: Sequence[StageCost]) -> Cost:
    others = {cost.fingerprint for name, other in paths.items() if name != model for cost in other}
    earlier = [cost for cost in path if model not in cost.names]
    return Cost(
        seconds=round(sum(cost.seconds for cost in path), 3),
        own_seconds=sum(cost.seconds for cost in path if model in cost.names),
        shared_seconds=round(sum(cost.seconds for cost in earlier if cost.fingerprint in others), 3),
        sampled_tokens=_sum(cost.sampled_tokens for cost in path),
        trained_tokens=_sum(cost.trained_tokens for cost in path),
        scored_completions=_sum(cost.scored_completions for cost in path),
        flops=_sum(cost.flops for cost in path),
        total_seconds=round(sum(cost.seconds for cost in whole), 3),
        total_flops=_sum(cost.flops for cost in whole),
        memory_bytes=_peak(cost.memory_bytes for cost in path),
        trials=max(1, sum(cost.trials for cost in path)),
    )


def _sampled(manifest: Manifest) -> int | None:
    samples = {"num_candidates", "rollout_batch_size"} & manifest.config.keys()
    return manifest.metrics.get("new_tokens") if samples else 0


def _scored(manifest: Manifest) -> int | None:
    config, metrics = manifest.config, manifest.metrics
    if "candidates" in config and "scorers" in config:
        return manifest.rows_in
    if "rollout_batch_size" in config:
        if not config.get("scorers") and not config["watch"]:  # a teacher needs no scores
            return 0
        return metrics.get("scored_completions" if "group_size" in config else "episodes")
    return metrics.get("scored_completions") if "num_candidates" in config and "scorer" in config else 0


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is not known: a sum of the others would look like the whole."""
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def _peak(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def made_from(model: str, artifacts: Sequence[Artifact], by_fingerprint: Mapping[str, Artifact]) -> set[str]:
    """Fingerprints of what a model was made from, its own among them."""
    needed: set[str] = set()
    ahead = [artifact.fingerprint for artifact in artifacts if artifact.name == model]
    while ahead:
        fingerprint = ahead.pop()
        # A result is followed once, however many paths lead to it.
        if fingerprint in by_fingerprint and fingerprint not in needed:
            needed.add(fingerprint)
            ahead += by_fingerprint[fingerprint].manifest.inputs.values()
    return needed
