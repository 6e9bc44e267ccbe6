"""How the work is spread over the devices of a machine: a file beside a recipe, not a part of it.

It changes how long a run takes, never what is run: it enters no fingerprint, and manifests record what was used.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from align.config.base import StrictModel

MACHINE_NAME = "machine.yaml"
"""Name of the file in a recipe's folder."""
MACHINE_VARIABLE = "ALIGN_MACHINE"
"""Environment variable that names such a file."""

Strategy = Literal["single", "ddp", "fsdp2", "zero3"]
"""How the processes of a training divide the model: one process; a copy each; a part each (fsdp2, zero3)."""


class TrainingProcesses(StrictModel):
    """How trainings are spread."""

    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Processes of a training stage on each node, one per GPU. auto: one for each GPU that is visible, or a single one without
    GPUs."""
    nodes: int = Field(default=1, ge=1)
    """Machines that train a stage together, with so many processes on each. More than 1 needs a Ray cluster: see ray."""
    strategy: Literal["auto", Strategy] = "auto"
    """single: one process. ddp: every process has a copy of the model, and they share the rows of a batch. fsdp2: they share the
    model too, so that each holds a part of weights, gradients and optimizer. zero3: the same by DeepSpeed's ZeRO-3, for all but
    online methods. auto: single for one process, ddp where a copy fits into a GPU, else fsdp2."""
    hang_minutes: float = Field(default=30.0, gt=0)
    """A training of several processes is ended if none of them has finished a step, or a batch of rows, for so long. While an
    online method samples, scores or goes through a rollout batch, every token, batch and pass counts."""

    @model_validator(mode="after")
    def _single_is_one_process(self) -> TrainingProcesses:
        if self.strategy == "single" and self.processes not in ("auto", 1):
            raise ValueError(f"strategy single is one process, not {self.processes}; write ddp or fsdp2, or leave processes out")
        if self.strategy == "single" and self.nodes > 1:
            raise ValueError(f"strategy single is one process, not {self.nodes} nodes; write ddp or fsdp2, or leave nodes out")
        return self


class SamplingEngines(StrictModel):
    """How sampling and scoring are spread."""

    engines: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Engines that sample, or scorers, at the same time, each in a process of its own. auto: the recipe's num_workers; without
    it, one for each group of tensor_parallel GPUs, or a single one without GPUs. Online methods sample in the processes that
    train: as many have an engine as these have GPUs; auto: all of them, or a single one without GPUs."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of one vLLM engine, for models that do not fit into one."""
    pool: Literal["processes", "ray"] = "processes"
    """Where engines run: in processes of this machine, or in actors of a Ray cluster."""
    devices: Literal["cpu"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """GPUs that sample for online methods and never train, by their place among those that are visible, from 0. Default: they
    sample on the GPUs that train. cpu: without GPUs, an engine in a process of its own."""

    @model_validator(mode="after")
    def _engines_share_devices(self) -> SamplingEngines:
        if isinstance(self.devices, list):
            twice = [gpu for gpu in self.devices if self.devices.count(gpu) > 1]
            if twice:
                raise ValueError(f"devices names GPU {twice[0]} twice; write each once")
            if len(self.devices) % self.tensor_parallel:
                raise ValueError(
                    f"devices names {len(self.devices)} GPUs, which engines of {self.tensor_parallel} (tensor_parallel) cannot "
                    "share; write a multiple of it"
                )
        return self


class RayCluster(StrictModel):
    """The Ray cluster of `pool: ray`, and of trainings on several nodes."""

    address: str = "auto"
    """Address of its head node, such as 10.0.0.1:6379. auto: the one that is running on this machine."""


class Schedule(StrictModel):
    """Which stages run at the same time."""

    at_once: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """The most stages that run side by side where none needs another's result, each with its part of GPUs or threads. No more
    than there are GPUs, or without GPUs cores. auto: as many as there are GPUs; without GPUs one after the other."""


class MachineSettings(StrictModel):
    """How the work is spread over devices."""

    training: TrainingProcesses = TrainingProcesses()
    """Processes that train."""
    sampling: SamplingEngines = SamplingEngines()
    """Engines that sample, and processes that score."""
    schedule: Schedule = Schedule()
    """Stages that run at the same time."""
    ray: RayCluster = RayCluster()
    """The Ray cluster, if one is used."""


def training_processes(settings: TrainingProcesses, *, num_gpus: int, batch_size: int) -> tuple[int, int]:
    """How many nodes train a stage, and with how many processes each: together no more than an optimizer batch has rows.

    Args:
        num_gpus: visible ones.
        batch_size: rows of an optimizer batch.
    """
    if settings.strategy == "single":
        return 1, 1
    nodes = min(settings.nodes, batch_size)
    wanted = max(num_gpus, 1) if settings.processes == "auto" else settings.processes
    return nodes, min(wanted, batch_size // nodes)
