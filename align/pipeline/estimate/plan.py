"""The estimates of all training stages of a plan, and which of them fit this machine. An estimate that cannot be made is None."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from align.config.peft import Lora, VirtualTokens
from align.pipeline.estimate.lengths import RowLength, row_lengths
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.shape import ModelShape, read_shape
from align.pipeline.estimate.stage import Estimate, Peft, Sources, TrainingConfig, estimate_stage, method_name
from align.pipeline.estimate.wording import size_text
from align.pipeline.plan import Plan, PlannedStage
from align.stages import dpo, ppo
from align.store.artifact import Artifact

METHODS: tuple[Peft, ...] = (None, Lora(method="lora"), Lora(method="qlora"))
"""Shown for every stage: full fine-tuning, and LoRA and QLoRA with their defaults."""


@dataclass(frozen=True)
class StageEstimate:
    """One training stage with every method."""

    name: str
    chosen: str
    """The method that the recipe names."""
    estimates: tuple[Estimate, ...]
    """The chosen one among them; empty where nothing is known of the model."""
    measured_bytes: int | None
    """Peak memory when the stage was run, where it was."""

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


def advice(stage: StageEstimate, machine: Machine) -> str | None:
    """A sentence where the recipe's method does not fit the memory and another does; None elsewhere."""
    chosen = stage.of_recipe
    if chosen is None or chosen.memory.peak <= machine.free_bytes:
        return None
    fitting = [other for other in stage.estimates if other.memory.peak <= machine.free_bytes]
    if not fitting:
        return None
    # The largest that fits gives up least.
    best = max(fitting, key=lambda other: other.trainable_parameters)
    needs, free = size_text(chosen.memory.peak), size_text(machine.free_bytes)
    return f"{stage.name}: {chosen.method} needs about {needs} of {free}; {best.method} needs {size_text(best.memory.peak)}"


def estimate_plan(plan: Plan, machine: Machine | None = None) -> PlanEstimate:
    """What every training stage of the plan needs.

    Args:
        machine: the one it would run on; default: this one.
    """
    found = machine or read_machine(plan.run_folder)
    estimator = _Estimator(plan, found)
    return PlanEstimate(found, tuple(estimator.estimates()))


class _Estimator:
    """Follows references to what is on disk, and reads each folder once."""

    def __init__(self, plan: Plan, machine: Machine) -> None:
        self._plan = plan
        self._machine = machine
        self._stages = {stage.name: stage for stage in plan.stages}
        self._shapes: dict[Path, ModelShape | None] = {}
        self._lengths: dict[tuple[str, Path], list[RowLength] | None] = {}

    def estimates(self) -> Iterator[StageEstimate]:
        for stage in self._plan.stages:
            config = stage.node.config
            if not isinstance(config, get_args(TrainingConfig)):
                continue
            peft = _peft(config)
            sources = self._sources(config)
            estimates: tuple[Estimate, ...] = ()
            if sources is not None:
                lengths = self._row_lengths(config)
                methods = {method_name(method): method for method in (*METHODS, peft)}
                estimates = tuple(estimate_stage(config, method, sources, lengths, self._machine) for method in methods.values())
            yield StageEstimate(stage.name, method_name(peft), estimates, _measured(stage))

    def _sources(self, config: TrainingConfig) -> Sources | None:
        model = self._shape(config.model)
        if model is None:
            return None
        if isinstance(config, dpo.Config) and config.reference not in (None, config.model):
            reference = self._shape(str(config.reference))
            return None if reference is None else Sources(model, reference=reference)
        if isinstance(config, ppo.Config):
            return self._ppo_sources(config, model)
        return Sources(model)

    def _ppo_sources(self, config: ppo.Config, model: ModelShape) -> Sources | None:
        scorers = [scorer for scorer in (*config.scorers.values(), *config.watch.values()) if isinstance(scorer, str)]
        shapes = [self._shape(scorer) for scorer in dict.fromkeys(scorers)]
        known = tuple(shape for shape in shapes if shape is not None)
        value_source = config.value_source()
        value_model = None if value_source is None else self._shape(value_source)
        if len(known) < len(shapes) or (value_source is not None and value_model is None):
            return None
        return Sources(model, reward_models=known, value_model=value_model)

    def _shape(self, name: str) -> ModelShape | None:
        """Of an input or of what a stage will make, which has the shape of what it starts from."""
        folder = self._model_folder(name)
        if folder is None:
            return None
        if folder not in self._shapes:
            self._shapes[folder] = read_shape(folder)
        return self._shapes[folder]

    def _model_folder(self, name: str) -> Path | None:
        """Folder of the input that a model was made from, or is."""
        while name in self._stages:
            name = str(getattr(self._stages[name].node.config, "model", ""))
        resolved = self._plan.inputs.get(name)
        return None if resolved is None or resolved.artifact is None else resolved.artifact.model_path

    def _row_lengths(self, config: TrainingConfig) -> list[RowLength] | None:
        folder = self._model_folder(config.model)
        name = str(getattr(config, "data", None) or getattr(config, "pairs", None) or getattr(config, "prompts", ""))
        data = self._plan.inputs.get(name) or self._made(name)
        if folder is None or data is None:
            return None
        if (name, folder) not in self._lengths:
            self._lengths[name, folder] = row_lengths(data, folder)
        return self._lengths[name, folder]

    def _made(self, name: str) -> Artifact | None:
        """What a stage made, where it was run before."""
        stage = self._stages.get(name)
        manifest = stage.entry.read_manifest() if stage is not None and stage.status == "cached" else None
        return None if stage is None or manifest is None else Artifact(name, stage.entry.path, manifest)


def _peft(config: TrainingConfig) -> Lora | VirtualTokens | None:
    peft = getattr(config, "peft", None)
    return peft if isinstance(peft, Lora | VirtualTokens) else None


def _measured(stage: PlannedStage) -> int | None:
    manifest = stage.entry.read_manifest() if stage.status == "cached" else None
    return manifest.peak_memory_bytes if manifest is not None and manifest.peak_memory_bytes else None
