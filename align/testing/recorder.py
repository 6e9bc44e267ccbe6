"""Sinks that keep what happened."""

from __future__ import annotations

import os
import signal
from typing import TypeVar

from align.runtime.events import Event, Note, Progress, Saving

E = TypeVar("E", bound=Event)


class Recorder:
    """Keeps events in their order; its `handle` also serves as a context's `emit`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def notes(self) -> list[str]:
        return [note.text for note in self.of(Note)]


class CheckpointAsker:
    """Sends SIGUSR1 to the run, which is of this process, when a training reports its first step."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        """Steps of the training and checkpoints, in their order: `step 1`, `saved`."""

    def handle(self, event: Event) -> None:
        if isinstance(event, Progress) and event.task == "train":
            self.seen.append(f"step {event.done:.0f}")
            if event.done == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
        elif isinstance(event, Saving) and event.seconds is not None:
            self.seen.append("saved")
