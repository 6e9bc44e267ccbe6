"""One attempt at a piece of long work: where it may keep unfinished things, whom it tells, who may ask it to stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
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
class Attempt:
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


def end_with_parent() -> None:
    """Kill this process as soon as the process that started it is gone, however it went. No orphan goes on writing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
