"""The trials of a recipe's sweeps: settings, scores, cost and which one was chosen, from a plan and the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from align.config.sweep import CHOICE_STAGE, SECTION
from align.config.trials import short_name
from align.engines.scored import SCORE_NAME
from align.pipeline.plan import Plan, PlannedStage, Status, needed_by


@dataclass(frozen=True)
class Trial:
    """One trial as it stands."""

    stage: str
    """The stage that trains it."""
    settings: Mapping[str, Any]
    """Value by field; fields of the swept stage without its name."""
    status: Status
    """Of its stages together: cached only if all of them are."""
    seconds: float | None
    """Wall time of the stages that are not shared by all trials; None until they have run."""
    score: Mapping[str, Any] | None
    """Mean with its 95 % interval; None until the choice is made."""
    over_chosen: Mapping[str, Any] | None
    """Paired difference to the chosen trial, with its interval."""
    prompts: int | None
    """Validation prompts that it answered."""
    chosen: bool


@dataclass(frozen=True)
class SweepState:
    """A sweep as it stands; of a stage with seeds, one of its sweeps."""

    stage: str
    """The stage that chooses, whose name is that of the chosen model."""
    swept: str
    """The stage as it is written in the recipe."""
    prompts: str
    scorer: str
    """Name of a reward model, `rules` or `ensemble`."""
    status: Status
    trials: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sweep_states(plan: Plan) -> Iterator[SweepState]:
    """Every sweep of the plan's recipe, in the order in which they run."""
    for stage in plan.stages:
        section, swept, *_ = plan.recipe.expansion.written(("stages", stage.name))
        if stage.stage_type == CHOICE_STAGE and section == SECTION:
            config: Any = stage.node.config
            # A scorer that is no name is a section with one field: rules, or an ensemble.
            scorer = config.scorer if isinstance(config.scorer, str) else next(iter(type(config.scorer).model_fields))
            yield SweepState(
                stage.name, str(swept), config.prompts, scorer, stage.status, tuple(_trials(plan, stage, str(swept)))
            )


def _trials(plan: Plan, choice: PlannedStage, swept: str) -> Iterator[Trial]:
    config: Any = choice.node.config
    settings = {trial.label: trial.settings for trial in plan.recipe.expansion.sweeps.trials[swept]}
    stages = {stage.name: stage for stage in plan.stages}
    manifest = choice.entry.read_manifest() if choice.status == "cached" else None
    numbers = manifest.metrics["models"] if manifest else {}
    needs = {label: needed_by(plan.recipe, name) & stages.keys() for label, name in config.models.items()}
    shared = set.intersection(*needs.values()) if len(needs) > 1 else set()
    # In the order in which they were made, which is that of their numbers.
    for label in (label for label in settings if label in config.models):
        own = [stages[name] for name in needs[label] - shared]
        times = [stage.seconds for stage in own]
        found = numbers.get(label, {})
        yield Trial(
            stage=config.models[label],
            settings={short_name(field, swept): value for field, value in settings[label].items()},
            status=next((stage.status for stage in own if stage.status != "cached"), "cached"),
            seconds=None if None in times else round(sum(time for time in times if time is not None), 3),
            score=found.get(SCORE_NAME),
            over_chosen=found.get("over_selected"),
            prompts=found.get("prompts"),
            chosen=manifest is not None and manifest.metrics["selected"] == label,
        )
