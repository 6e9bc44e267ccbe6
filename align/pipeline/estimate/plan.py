"""Estimates for all training stages of a plan, and which of them fit this machine. None stands for an impossible estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from align.config.peft import Lora
from align.models.folder import ModelFolder
from align.pipeline.estimate.lengths import row_lengths
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.memory import Estimate, Peft, estimate_stage, method_name
from align.pipeline.estimate.shape import read_shape
from align.pipeline.plan import Plan
from align.store.artifact import Artifact
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
            }
            for estimate in self.estimates
        ]
        return {"stage": self.name, "method": self.chosen, "measured_bytes": self.measured_bytes, "methods": methods}


@dataclass(frozen=True)
class PlanEstimate:
    """All training stages of a plan, and the machine."""

    machine: Machine
    stages: tuple[StageEstimate, ...]

    def to_json(self) -> dict[str, Any]:
        return {"machine": asdict(self.machine), "stages": [stage.to_json(self.machine) for stage in self.stages]}


def fits(estimate: Estimate, machine: Machine) -> bool:
    """Whether memory and disk that are free now are enough."""
    return estimate.memory.peak <= machine.free_bytes and estimate.disk_bytes <= machine.free_disk_bytes


def estimate_plan(plan: Plan, machine: Machine | None = None) -> PlanEstimate:
    """What every training stage of the plan needs.

    Args:
        machine: the one it would run on; default: this one.
    """
    found = machine or read_machine(plan.run_folder)
    return PlanEstimate(found, tuple(_estimates(plan, found)))


def starting_folder(plan: Plan, name: str) -> ModelFolder | None:
    """Folder of the input that a model is, or was made from."""
    stages = {stage.name: stage for stage in plan.stages}
    # A stage's model has the shape of the model it started from, so its input is enough, also before the stage has run.
    while name in stages:
        name = str(getattr(stages[name].node.config, "model", ""))
    resolved = plan.inputs.get(name)
    return None if resolved is None else resolved.model


def _estimates(plan: Plan, machine: Machine) -> Iterator[StageEstimate]:
    stages = {stage.name: stage for stage in plan.stages}
    # Stages of a plan often share a model and its data.
    shape_in = cache(read_shape)

    @cache
    def lengths_of(rows: str, folder: ModelFolder) -> list[RowLength] | None:
        """Lengths of an input's rows, or of the rows that a finished stage made."""
        stage = stages.get(rows)
        manifest = stage.entry.read_manifest() if stage is not None and stage.status == "cached" else None
        made = None if stage is None or manifest is None else Artifact(rows, stage.entry.path, manifest)
        data = plan.inputs.get(rows) or made
        return None if data is None else row_lengths(data, folder.path)

    for stage in plan.stages:
        config = stage.node.config
        if not isinstance(config, Trains):
            continue
        needs = config.training_needs()
        folders = {name: folder for name in needs.models if (folder := starting_folder(plan, name)) is not None}
        shapes = {name: shape for name, folder in folders.items() if (shape := shape_in(folder)) is not None}
        estimates: tuple[Estimate, ...] = ()
        # A part of the models would give a number that is too small.
        if shapes.keys() == needs.models:
            lengths = lengths_of(needs.rows, folders[needs.model])
            methods = {method_name(method): method for method in (*METHODS, needs.peft)}
            estimates = tuple(estimate_stage(needs, method, shapes, lengths, machine) for method in methods.values())
        manifest = stage.entry.read_manifest() if stage.status == "cached" else None
        measured = manifest.peak_memory_bytes or None if manifest is not None else None
        yield StageEstimate(stage.name, method_name(needs.peft), estimates, measured)
