"""`events.jsonl`: the events of a run, in a file that can be read during the run and after any kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from align.runtime.events import Event, Progress, from_json, to_json
from align.runtime.plain_file import open_plain
from align.system_errors import explained, write_line

EVENTS_NAME = "events.jsonl"
PROGRESS_SECONDS = 1.0
"""Least time between two progress events of a task in the file. The first and the last are always written."""


class JsonlSink:
    """Appends events to a file, each in one write of one line.

    A reader that takes only whole lines sees only whole events. Several runs of a recipe, killed ones too, follow each other in
    the file. There is no fsync: a power cut may lose the newest lines, a kill loses none.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._written: dict[tuple[str, str], float] = {}
        """By stage and task, the time of the last progress event that was written."""
        with explained(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._cut_unfinished_line()

    def handle(self, event: Event) -> None:
        """Write the event.

        Raises:
            EnvironmentProblem: if the operating system refuses to write; see `align.system_errors`.
        """
        if isinstance(event, Progress) and not self._is_due(event):
            return
        line = (to_json(event) + "\n").encode()
        with explained(self._path):
            try:
                write_line(self._file, line)
            except OSError:
                self._cut_unfinished_line()
                raise

    def __enter__(self) -> JsonlSink:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def _is_due(self, event: Progress) -> bool:
        key, now = (event.stage, event.task), self._clock()
        due = key not in self._written or event.done == event.total or now - self._written[key] >= PROGRESS_SECONDS
        if due:
            self._written[key] = now
        return due

    def _cut_unfinished_line(self) -> None:
        """Remove the part of a line that a kill or a full disk left, so that the next event does not continue it."""
        # Backwards in blocks: the file may be large, and its last line is near the end.
        size = end = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - 65_536)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)


def read_events(path: Path) -> Iterator[Event]:
    """The events in a file, without a last line that is still being written.

    Raises:
        ValueError: with the line's number, if a line is not an event.
    """
    with open_plain(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
