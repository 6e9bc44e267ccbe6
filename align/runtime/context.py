"""What long work may know of its surroundings: where it keeps unfinished files, where it reports, who may ask it to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import Interrupted


class Progress:
    """Progress of long work, sent to whoever shows it."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send

    def update(self, task: str, done: float, total: float | None, unit: str, **numbers: float) -> None:
        """Say that `done` of `total` (None: unknown) `unit`s are finished; `numbers` are shown beside it (loss, tokens/s)."""
        self._send({"event": "progress", "task": task, "done": done, "total": total, "unit": unit, "numbers": numbers})

    def note(self, text: str) -> None:
        """Say one line that a person should read."""
        self._send({"event": "note", "text": text})


@dataclass(kw_only=True)
class RunContext:
    """What trainers and samplers need to know of their surroundings."""

    name: str
    """What the recipe calls this stage."""
    work: Path
    """Survives interruptions, and is removed when the stage is committed: unfinished shards and checkpoints live here."""
    seed: int
    """Every random number follows from it."""
    progress: Progress
    stop_requested: Callable[[], int | None]
    """The number of the signal that asked to stop, or None."""

    def check_stop(self) -> None:
        """Raise Interrupted when a stop was requested; called where stopping loses nothing that is finished."""
        number = self.stop_requested()
        if number is not None:
            raise Interrupted("Stopped; what is finished is kept.", signal_number=number)

    def counter(self, task: str, unit: str) -> Callable[[int, int], None]:
        """A function to be called with (done, total) of `task`, between pieces of work: it is where a stop takes effect."""

        def count(done: int, total: int) -> None:
            self.progress.update(task, done, total, unit)
            self.check_stop()

        return count
