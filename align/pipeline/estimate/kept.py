"""Which answers a comparison that will run finds in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from align.pipeline.plan import Plan, PlannedStage
from align.store.artifact import Manifest
from align.store.kept import ANSWERS

COMPARISON = "compare"
FURTHER = "best of n"


def kept_answers(plan: Plan, stage: PlannedStage, manifests: Iterable[Manifest]) -> dict[str, bool]:
    """Whose answers a comparison needs, and whether the store seems to have them; empty for any other stage.

    The stage itself looks closer: at the content of models and files, and at the versions of engine and libraries.

    Args:
        manifests: of the finished results of the store.
    Returns:
        By model, and under `FURTHER` for the baseline's further candidates.
    """
    if stage.stage_type != COMPARISON:
        return {}
    config: Any = stage.node.config
    missing = {other.name for other in plan.stages if other.status != "cached"}
    there = [(manifest.inputs, manifest.config) for manifest in manifests if manifest.stage == ANSWERS]

    def is_there(model: str, settings: Mapping[str, Any]) -> bool:
        if {model, config.prompts} & missing:
            return False
        sources = {"model": stage.inputs[model], "prompts": stage.inputs[config.prompts]}
        return (sources, {"seed": stage.seed, **config.text_settings(), **settings}) in there

    found = {str(model): is_there(model, {"first_candidate": 0}) for model in config.models}
    if (more := config.pool_candidates - config.num_candidates) > 0:
        found[FURTHER] = is_there(config.baseline, {"first_candidate": config.num_candidates, "num_candidates": more})
    return found


def kept_sentence(stage: str, answers: Mapping[str, bool]) -> str | None:
    """Whose answers are reused; None if nobody's."""
    names = [name for name, is_there in answers.items() if is_there]
    return f"{stage}: the answers of {', '.join(names)} are in the store and are reused." if names else None
