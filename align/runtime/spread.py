"""Into how many processes a training is divided, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DEFAULT_HANG_MINUTES = 30.0


@dataclass(frozen=True)
class EngineDevices:
    """Devices on which engines sample for a training, and nothing trains."""

    gpus: tuple[int, ...] = ()
    """Places among the visible GPUs; none: the CPU, for a single engine."""
    tensor_parallel: int = 1
    """GPUs of each engine."""

    def __str__(self) -> str:
        if not self.gpus:
            return "1 engine on the CPU"
        count = f"{self.engines} engine{'' if self.engines == 1 else 's'}"
        each = f" of {self.tensor_parallel} GPUs" if self.tensor_parallel > 1 else ""
        return f"{count}{each} on GPU{'' if len(self.gpus) == 1 else 's'} {', '.join(map(str, self.gpus))}"

    @property
    def engines(self) -> int:
        """How many there are."""
        return max(1, len(self.gpus) // self.tensor_parallel)

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest records, in the words of the machine file."""
        return {"devices": list(self.gpus) or "cpu", "tensor_parallel": self.tensor_parallel}


@dataclass(frozen=True)
class Spread:
    """How one training stage is spread over devices. It changes rounding only."""

    processes: int = 1
    """Of all nodes together."""
    strategy: str = "single"
    """single, ddp, fsdp2 or zero3, as in `config.machine.TrainingProcesses`."""
    hang_minutes: float = DEFAULT_HANG_MINUTES
    """The training is ended if no process has finished anything for so long."""
    nodes: int = 1
    """Machines, each with the same number of processes."""
    engines: EngineDevices | None = None
    """Devices that sample for it; None: an online method samples on devices that train."""
    samplers: int = 1
    """Of an online method, the first so many processes have an engine, and sample a share of every rollout batch."""

    def __str__(self) -> str:
        engines = "" if self.engines is None else f"; {self.engines}"
        if self.strategy == "single":
            return f"1 process{engines}"
        nodes = f"{self.nodes} nodes × " if self.nodes > 1 else ""
        engines = f", {self.samplers} engines" if self.samplers > 1 else engines
        return f"{nodes}{self.processes_each} process{'' if self.processes_each == 1 else 'es'}, {self.strategy}{engines}"

    @property
    def processes_each(self) -> int:
        """Of one node."""
        return self.processes // self.nodes

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest records, in the words of the machine file."""
        nodes = {"nodes": self.nodes} if self.nodes > 1 else {}
        engines: dict[str, Any] = {"engines": self.samplers} if self.samplers > 1 else {}
        if self.engines is not None:
            engines = self.engines.facts
        return {**nodes, "processes": self.processes_each, "strategy": self.strategy, **engines}

    @property
    def divides_model(self) -> bool:
        """Whether each process has a part of weights, gradients and optimizer."""
        return self.strategy in ("fsdp2", "zero3")

    @property
    def is_shared(self) -> bool:
        """Whether processes of a group train, even if the group has only one."""
        return self.strategy != "single"


ALONE = Spread()
"""One process, as without a machine file."""
