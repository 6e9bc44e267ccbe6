"""A first guess of how long a training takes, where no similar one has finished: its operations, at a stated speed."""

from __future__ import annotations

import itertools
import json
import os
from functools import cache
from pathlib import Path

from align.config.inputs import DataInput
from align.data.source import SourceFile, read_file
from align.errors import AlignError
from align.models.folder import ModelFolder
from align.pipeline.estimate.lengths import MeasuredRows
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import starting_folder
from align.pipeline.estimate.shape import read_shape
from align.pipeline.inputs import ResolvedInput
from align.pipeline.plan import Plan, PlannedStage
from align.training.needs import SAMPLED_ROWS, TrainingNeeds, Trains

PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Operations per second in bfloat16 without sparsity, from NVIDIA's data sheets of each device (AWS's for A10G). The first name
that occurs in the device's own counts."""
SHARE_OF_PEAK = 0.35
"""Of a GPU's peak, that a training reaches: stated, not measured."""
CPU_CORE_FLOPS = 50e9
"""Operations per second of a CPU core in float32. Two cores reached 125e9 in an SFT step of 135 million parameters
(scripts/benchmarks/real_shape.json)."""
START_SECONDS = 15.0
"""Until the first step: a process, its imports, the model and its data."""
FORWARD, BACKWARD = 2, 4
"""Operations per weight and token (Kaplan et al. 2020, table 1); half of the backward ones are for gradients of weights."""


def peak_flops(device_name: str) -> float | None:
    """Operations per second of a GPU in bfloat16; None for one that is not in the table."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def stated_flops(machine: Machine) -> float | None:
    """Operations per second that a training is taken to reach; None for a GPU that is not known."""
    if machine.device == "cpu":
        return CPU_CORE_FLOPS * len(os.sched_getaffinity(0))
    peak = peak_flops(machine.name)
    return None if peak is None or not machine.has_bfloat16 else SHARE_OF_PEAK * peak


class SpeedGuess:
    """Knows the models and the files of a plan. Rows that a stage has yet to make are not known, nor is the time of sampling."""

    def __init__(self, plan: Plan, machine: Machine) -> None:
        self._plan = plan
        self._rows = MeasuredRows(plan.store)
        self._flops = stated_flops(machine)
        # Stages of a plan often share a model and its data.
        self._shape_in = cache(read_shape)
        self._tokens_in = cache(self._read_tokens)

    def seconds(self, stage: PlannedStage) -> float | None:
        """About how long a stage trains; None for rows yet to be made, for a model that is not known, or without training."""
        config = stage.node.config
        epochs = getattr(config, "num_epochs", None)
        if not isinstance(config, Trains) or epochs is None or self._flops is None:
            return None
        needs = config.training_needs()
        folder, data = starting_folder(self._plan, needs.model), self._plan.inputs.get(needs.rows)
        if folder is None or data is None or (shape := self._shape_in(folder)) is None:
            return None
        tokens = self._tokens_in(needs.rows, folder)
        return None if tokens is None else START_SECONDS + tokens * shape.parameters * _operations(needs, epochs) / self._flops

    def _read_tokens(self, name: str, folder: ModelFolder) -> float | None:
        """About how many tokens an input has, prompts once."""
        data = self._plan.inputs[name]
        lengths = self._rows.lengths(data, folder.path)
        try:
            rows = None if not lengths else len(lengths) if len(lengths) < SAMPLED_ROWS else count_rows(data)
        except (AlignError, OSError):  # the stage reports what is wrong when it runs
            rows = None
        return None if rows is None or not lengths else rows * sum(row.total for row in lengths) / len(lengths)


def _operations(needs: TrainingNeeds, epochs: int) -> int:
    """Per weight and token."""
    of_epoch = FORWARD + (BACKWARD if needs.peft is None else BACKWARD // 2)
    if needs.memory.gradient_checkpointing is True:
        of_epoch += FORWARD
    return epochs * of_epoch + (0 if needs.reference is None else FORWARD)


def count_rows(data: ResolvedInput) -> int | None:
    """About how many rows an input has, by the sizes of its files and of its first rows; None where that is not known."""
    if data.artifact is not None:
        return data.artifact.manifest.rows_out
    spec, source = data.spec, data.source
    assert isinstance(spec, DataInput)  # only data inputs can be without an artifact
    assert source is not None  # every data input has one
    counts = [_rows_in(file) for file in source.files]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _rows_in(file: SourceFile) -> int | None:
    path = file.origin
    if not isinstance(path, Path) or path.suffix == ".gz" or file.format == ".arrow":
        return None
    if file.format == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    first = list(itertools.islice(read_file(file), SAMPLED_ROWS))
    if len(first) < SAMPLED_ROWS:
        return len(first)
    size = sum(len(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace")) for _, row in first)
    return round(path.stat().st_size * len(first) / size)
