"""Estimates for all training stages of a plan, and which of them fit this machine. None stands for an impossible estimate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from align.config.online import OnlineTraining
from align.config.peft import Lora
from align.models.folder import ModelFolder
from align.models.shape import read_shape
from align.pipeline.estimate.fit import fit_stage
from align.pipeline.estimate.lengths import MeasuredRows
from align.pipeline.estimate.loaded_model import Peft
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.memory import Estimate, method_name
from align.pipeline.estimate.spread import division_refusal, spread_of
from align.pipeline.plan import Plan, PlannedStage
from align.runtime.share import WHOLE, Share
from align.runtime.spread import ALONE, Spread
from align.store.artifact import Artifact, Manifest
from align.training.checkpoint import FOLDER_NAME, all_checkpoints, strategy_of
from align.training.needs import RowLength, Trains

METHODS: tuple[Peft, ...] = (None, Lora(method="lora"), Lora(method="qlora"))
"""Shown for every stage: full fine-tuning, and LoRA and QLoRA with their defaults."""


@dataclass(frozen=True)
class StageEstimate:
    """One training stage with every method."""

    name: str
    chosen: str
    """The method that the recipe names."""
    estimates: tuple[Estimate, ...]
    """They include the chosen method; empty where the model's shape is not known."""
    measured_bytes: int | None
    """Peak memory of the finished stage; None where it has not run."""
    spread: Spread = ALONE
    """The processes that share it, with the method that the recipe names."""

    @property
    def of_recipe(self) -> Estimate | None:
        return next((estimate for estimate in self.estimates if estimate.method == self.chosen), None)

    def to_json(self, machine: Machine) -> dict[str, Any]:
        methods = [
            {
                "method": estimate.method,
                "chosen": estimate.method == self.chosen,
                "trainable_parameters": estimate.trainable_parameters,
                "memory_bytes": estimate.memory.peak,
                "memory_parts": {name: size for name, size in asdict(estimate.memory).items() if name != "peak"},
                "disk_bytes": estimate.disk_bytes,
                "kept_bytes": estimate.kept_bytes,
                "fits": fits(estimate, machine),
                "auto": asdict(estimate.choice),
                "spread": asdict(estimate.spread),
            }
            for estimate in self.estimates
        ]
        found = {"stage": self.name, "method": self.chosen, "measured_bytes": self.measured_bytes}
        return {**found, "spread": asdict(self.spread), "methods": methods}


@dataclass(frozen=True)
class PlanEstimate:
    """All training stages of a plan, and the machine."""

    machine: Machine
    stages: tuple[StageEstimate, ...]
    shares: Mapping[str, Share] = field(default_factory=dict)
    """What stages that run side by side have of the machine, by name; others have all of it."""

    def machine_of(self, stage: str) -> Machine:
        """What a stage sees of the machine."""
        return self.machine.part(self.shares.get(stage, WHOLE))

    def to_json(self) -> dict[str, Any]:
        return {"machine": asdict(self.machine), "stages": [stage.to_json(self.machine) for stage in self.stages]}


def fits(estimate: Estimate, machine: Machine) -> bool:
    """Whether memory and disk that are free now are enough."""
    return estimate.memory.peak <= machine.free_for(estimate.spread) and estimate.disk_bytes <= machine.free_disk_bytes


def estimate_plan(plan: Plan, machine: Machine | None = None, shares: Mapping[str, Share] | None = None) -> PlanEstimate:
    """What every training stage of the plan needs.

    Args:
        machine: the one it would run on; default: this one.
        shares: see `PlanEstimate`.
    """
    found, shares = machine or read_machine(plan.run_folder), shares or {}
    made = {stage.name: Artifact(stage.name, stage.entry.path, manifest) for stage, manifest in _finished(plan)}
    reader = PlanReader(plan, made)
    estimate = PlanEstimate(found, tuple(_estimates(plan, reader, found, shares)), shares)
    reader.rows.save()
    return estimate


def starting_folder(plan: Plan, name: str) -> ModelFolder | None:
    """Folder of the input that a model is, or was made from."""
    stages = {stage.name: stage for stage in plan.stages}
    # A stage's model has the shape of the model it started from, so its input is enough, also before the stage has run.
    while name in stages:
        config: Any = stages[name].node.config
        # Of models to choose from, the first stands for all.
        name = next(iter(config.models.values())) if stages[name].stage_type == "select_model" else getattr(config, "model", "")
    resolved = plan.inputs.get(name)
    return None if resolved is None else resolved.model


def _by_name(methods: Iterable[Peft]) -> Iterable[Peft]:
    """The methods, of each name the last."""
    return {method_name(method): method for method in methods}.values()


def _finished(plan: Plan) -> Iterator[tuple[PlannedStage, Manifest]]:
    for stage in plan.stages:
        if stage.status == "cached" and (manifest := stage.entry.read_manifest()) is not None:
            yield stage, manifest


def _estimates(plan: Plan, reader: PlanReader, whole: Machine, shares: Mapping[str, Share]) -> Iterator[StageEstimate]:
    for stage in plan.stages:
        machine = whole.part(shares.get(stage.name, WHOLE))
        if isinstance(config := stage.node.config, Trains):
            peft = config.training_needs().peft
            finished = reader.made.get(stage.name)
            measured = None if finished is None else finished.manifest.peak_memory_bytes or None
            estimates = reader.estimates(stage, (*METHODS, peft), machine)
            yield StageEstimate(stage.name, method_name(peft), estimates, measured, reader.spread(stage, peft, machine))


class PlanReader:
    """Reads models and rows of a plan's training stages, each once."""

    def __init__(self, plan: Plan, made: Mapping[str, Artifact]) -> None:
        """`made` has what stages have made so far."""
        self.made = made
        self.rows = MeasuredRows(plan.store)
        self._plan = plan
        # Stages of a plan often share a model and its data.
        self._shape_in = cache(read_shape)
        self._lengths_in = cache(self._read_lengths)

    def estimates(self, stage: PlannedStage, methods: Iterable[Peft], machine: Machine) -> tuple[Estimate, ...]:
        """One for each method, as `fit_stage` makes it; empty where the shape of a model is not known."""
        found = [self.estimate(stage, method, machine, self.spread(stage, method, machine)) for method in _by_name(methods)]
        return tuple(estimate for estimate in found if estimate is not None)

    def spread(self, stage: PlannedStage, peft: Peft, machine: Machine) -> Spread:
        """How a stage is spread that trains with this method. What is not known counts as if it fitted."""
        config, settings = stage.node.config, self._plan.machine_file.settings
        assert isinstance(config, Trains)
        needs = config.training_needs()
        folder = starting_folder(self._plan, needs.model)
        refusal = division_refusal("fsdp2", stage.stage_type, peft, folder, needs.memory.optimizer)

        def fits_so(spread: Spread) -> bool:
            found = self.estimate(stage, peft, machine, spread)
            return found is None or found.memory.peak <= machine.free_for(spread)

        checkpoints = all_checkpoints(stage.entry.work / FOLDER_NAME)
        # Those of online methods are whole, and fit any strategy.
        began = strategy_of(checkpoints[0]) if checkpoints and not isinstance(config, OnlineTraining) else None
        return spread_of(
            stage.stage_type,
            config,
            settings.training,
            machine,
            refusal=refusal,
            fits=fits_so,
            checkpoint=began,
            sampling=settings.sampling,
        )

    def estimate(self, stage: PlannedStage, peft: Peft, machine: Machine, spread: Spread) -> Estimate | None:
        """That of one method and spread, as `fit_stage` makes it; None where the shape of a model is not known."""
        config = stage.node.config
        assert isinstance(config, Trains)
        needs = config.training_needs()
        folders = {name: folder for name in needs.models if (folder := starting_folder(self._plan, name)) is not None}
        shapes = {name: shape for name, folder in folders.items() if (shape := self._shape_in(folder)) is not None}
        # A part of the models would give a number that is too small.
        if shapes.keys() != needs.models:
            return None
        lengths = self._lengths_in(needs.rows, folders[needs.model])
        return fit_stage(config, peft, shapes, lengths, machine, spread)

    def _read_lengths(self, rows: str, folder: ModelFolder) -> list[RowLength] | None:
        """Lengths of an input's rows, or of the rows that a finished stage made."""
        data = self._plan.inputs.get(rows) or self.made.get(rows)
        return None if data is None else self.rows.lengths(data, folder.path)
