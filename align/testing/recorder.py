"""A sink that keeps every event."""

from __future__ import annotations

from typing import TypeVar

from align.runtime.events import Event, Note

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
