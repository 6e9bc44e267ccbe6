"""Into how many processes a training is divided, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DEFAULT_HANG_MINUTES = 30.0


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

    def __str__(self) -> str:
        if self.strategy == "single":
            return "1 process"
        nodes = f"{self.nodes} nodes × " if self.nodes > 1 else ""
        return f"{nodes}{self.processes_each} process{'' if self.processes_each == 1 else 'es'}, {self.strategy}"

    @property
    def processes_each(self) -> int:
        """Of one node."""
        return self.processes // self.nodes

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest records, in the words of the machine file."""
        nodes = {"nodes": self.nodes} if self.nodes > 1 else {}
        return {**nodes, "processes": self.processes_each, "strategy": self.strategy}

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
