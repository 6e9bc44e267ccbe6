"""Into how many processes a training is divided, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_HANG_MINUTES = 30.0


@dataclass(frozen=True)
class Spread:
    """How one training stage is spread over the devices of a machine. It changes rounding only."""

    processes: int = 1
    strategy: str = "single"
    """single, ddp or fsdp2, as in `config.machine.TrainingProcesses`."""
    hang_minutes: float = DEFAULT_HANG_MINUTES
    """The training is ended if no process has finished anything for so long."""

    def __str__(self) -> str:
        if self.strategy == "single":
            return "1 process"
        return f"{self.processes} process{'' if self.processes == 1 else 'es'}, {self.strategy}"

    @property
    def is_shared(self) -> bool:
        """Whether processes of a group train, even if the group has only one."""
        return self.strategy != "single"


ALONE = Spread()
"""One process, as without a machine file."""
