"""What a plan says of how its stages are spread over devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from align.config.online import OnlineTraining
from align.pipeline.estimate.plan import PlanEstimate
from align.pipeline.estimate.spread import engines_of
from align.pipeline.plan import Plan
from align.runtime.spread import ALONE, Spread


@dataclass(frozen=True)
class StageSpread:
    """How one stage that will run is spread."""

    name: str
    text: str
    is_plain: bool
    """Whether it is as on one device."""
    facts: dict[str, Any]
    """What its manifest will record."""

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.name, "text": self.text, **self.facts}


def stage_spreads(plan: Plan, estimate: PlanEstimate) -> tuple[StageSpread, ...]:
    """One for every stage that will run and trains, samples or scores."""
    return tuple(_spreads(plan, estimate))


def _spreads(plan: Plan, estimate: PlanEstimate) -> Iterator[StageSpread]:
    trainings = {stage.name: stage for stage in estimate.stages}
    settings = plan.machine_file.settings
    for stage in plan.stages:
        if stage.status != "run":
            continue
        if (training := trainings.get(stage.name)) is not None:
            spread = training.spread
            yield StageSpread(stage.name, str(spread), spread == ALONE, training_facts(spread))
        elif (engines := engines_of(stage.node.config, settings.sampling, estimate.machine_of(stage.name))) is not None:
            yield StageSpread(stage.name, str(engines), engines.is_plain, engines.facts)


def workers_of(plan: Plan, estimate: PlanEstimate) -> dict[str, int]:
    """Processes or engines of each stage that will run, where each has a device of its own: a GPU, or its place in a Ray cluster.

    Processes of a CPU share its cores. The first process of an online method scores for all, so that more do not help as much.
    """
    online = {stage.name for stage in plan.stages if isinstance(stage.node.config, OnlineTraining)}
    has_gpus = estimate.machine.device == "cuda"
    return {
        spread.name: spread.facts.get("processes") or spread.facts["engines"]
        for spread in stage_spreads(plan, estimate)
        if spread.name not in online and (has_gpus or spread.facts.get("pool") == "ray")
    }


def training_facts(spread: Spread) -> dict[str, Any]:
    """What the manifest of a training records."""
    return spread.facts


def spread_lines(spreads: Sequence[StageSpread], source: str) -> list[str]:
    """Lines for people, one for each way that stages are spread; none where each stage is as on one device."""
    if all(spread.is_plain for spread in spreads):
        return []
    names: dict[str, list[str]] = {}
    for spread in spreads:
        names.setdefault(spread.text, []).append(spread.name)
    return [f"Devices, by {source or 'default'}:", *(f"  {text}: {', '.join(of)}" for text, of in names.items())]
