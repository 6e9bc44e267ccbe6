"""Progress on stderr: a live bar per running stage on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import IO, TYPE_CHECKING

from align.metric import duration_text, headlines, metric_of, number_text
from align.runtime.events import (
    Event,
    Note,
    Progress,
    Quarantined,
    StageCached,
    StageEvent,
    StageFinished,
    StageStarted,
    Waiting,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_INTERVAL_SECONDS = 5.0
MOST_METRICS = 4


@dataclass
class TaskState:
    """State of a running task. The rate counts from its first event, so that a task resumed at 300 of 400 does not look fast."""

    task: str
    unit: str
    first_done: float
    first_seconds: float
    done: float = 0.0
    total: float | None = None
    seconds: float = 0.0
    numbers: Mapping[str, float | None] = field(default_factory=dict)

    def update(self, event: Progress, now: float) -> None:
        self.done, self.total, self.seconds = event.done, event.total, now
        self.numbers = event.numbers

    @property
    def rate(self) -> float | None:
        """Units per second; None before the first progress."""
        elapsed = self.seconds - self.first_seconds
        return (self.done - self.first_done) / elapsed if elapsed > 0 and self.done > self.first_done else None

    def describe(self) -> str:
        """`340/980 steps, 12.1 steps/s, 53 s left, loss 1.23`."""
        of_total = "" if self.total is None else f"/{number_text(self.total)}"
        parts = [f"{number_text(self.done)}{of_total} {self.unit}"]
        if self.rate is not None:
            parts.append(f"{number_text(self.rate) if self.rate < 1000 else f'{self.rate:,.0f}'} {self.unit}/s")
            if self.total is not None and self.total > self.done:
                parts.append(f"{duration_text((self.total - self.done) / self.rate)} left")
        parts += [metric_of(name).text(value) for name, value in self.numbers.items() if value is not None]
        return ", ".join(parts)


class PlainDisplay:
    """Plain lines; at most one line of progress per stage every 5 seconds."""

    def __init__(self, stream: IO[str], clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._shown: dict[str, float] = {}

    def line(self, text: str) -> None:
        """Show a line that stays."""
        print(text, file=self._stream, flush=True)

    def progress(self, stage: str, state: TaskState) -> None:
        """Show how far a stage is."""
        now = self._clock()
        # The first event only starts the clock: a task of a few seconds prints no line of progress.
        if now - self._shown.setdefault(stage, now) >= PLAIN_INTERVAL_SECONDS:
            self._shown[stage] = now
            self.line(f"{_label(stage, state)}: {state.describe()}")

    def end(self, stage: str) -> None:
        """Remove a stage's progress."""
        self._shown.pop(stage, None)

    def close(self) -> None:
        """End the display."""


class LiveDisplay:
    """A bar per running stage at the bottom of a terminal; lines scroll above."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        console = Console(file=stream, highlight=False, markup=False)
        name, detail = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[detail]}"))
        columns = (name, BarColumn(bar_width=24), detail)
        self._progress = Bars(*columns, console=console, transient=True)
        self._progress.start()
        self._bars: dict[str, TaskID] = {}

    def line(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def progress(self, stage: str, state: TaskState) -> None:
        label = _label(stage, state)
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(label, total=state.total, detail="")
        self._progress.update(
            self._bars[stage], description=label, completed=state.done, total=state.total, detail=state.describe()
        )

    def end(self, stage: str) -> None:
        bar = self._bars.pop(stage, None)
        if bar is not None:
            self._progress.remove_task(bar)

    def close(self) -> None:
        self._progress.stop()


def _label(stage: str, state: TaskState) -> str:
    return stage if state.task == "train" else f"{stage} ({state.task})"


class ProgressDisplay:
    """Shows the events of a run. Safe to call from several threads.

    Args:
        live: show bars where `stream` is a terminal; they redraw the line that a debugger's prompt is on.
    """

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic, *, live: bool = True) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._live = live
        self._lock = threading.Lock()
        self._display: PlainDisplay | LiveDisplay = PlainDisplay(self._stream, clock)
        self._states: dict[str, TaskState] = {}

    def __enter__(self) -> ProgressDisplay:
        if self._live and self._stream.isatty():
            self._display = LiveDisplay(self._stream)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._display.close()

    def handle(self, event: Event) -> None:
        if not isinstance(event, StageEvent):
            return
        with self._lock:
            if isinstance(event, Progress):
                self._display.progress(event.stage, self._state(event))
                return
            if isinstance(event, StageFinished):
                self._states.pop(event.stage, None)
                self._display.end(event.stage)
            text = _sentence(event)
            if text is not None:
                self._display.line(f"{event.stage}: {text}")

    def _state(self, event: Progress) -> TaskState:
        now = self._clock()
        state = self._states.get(event.stage)
        # A stage has several tasks, such as sampling and scoring. Each has its own unit and so its own rate.
        if state is None or state.task != event.task:
            state = self._states[event.stage] = TaskState(event.task, event.unit, event.done, now)
        state.update(event, now)
        return state


def _sentence(event: StageEvent) -> str | None:
    """The line for an event that is not progress; None for one that the terminal does not show."""
    match event:
        case StageStarted(reason=reason):
            return f"started ({reason})" if reason else "started"
        case StageCached():
            return "done before"
        case Note(text=text):
            return text
        case Waiting(holder=holder):
            return f"waiting for {holder}"
        case Quarantined(path=path, problem=problem):
            return f"damaged result set aside in {path}: {problem}"
        case StageFinished(seconds=seconds, metrics=metrics):
            return ", ".join([f"done in {duration_text(seconds)}", *islice(headlines(metrics), MOST_METRICS)])
        case _:  # curves and completions are for other sinks; main() prints what a run failed with
            return None
