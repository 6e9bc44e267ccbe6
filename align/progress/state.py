"""Where a run is: folded from its events, without a word about how it is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from align.metric import duration_text, metric_of, number_text
from align.runtime.events import (
    Event,
    Progress,
    RunPlanned,
    StageCached,
    StageEvent,
    StageFailed,
    StageFinished,
    StageStarted,
)

WHOLE_STAGE_TASKS = ("train", "generate", "score", "select")
"""Tasks that are almost all of their stage, so that their time left is the stage's. Others are one of several parts."""


def rate_text(rate: float, unit: str) -> str:
    """`12.1 steps/s`; of what takes longer than ten seconds `26 s per shard`."""
    if rate < 0.1:
        return f"{duration_text(1 / rate)} per {unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


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
    per_unit: Mapping[str, float] = field(default_factory=dict)

    def update(self, event: Progress, now: float) -> None:
        self.done, self.total, self.seconds = event.done, event.total, now
        self.numbers, self.per_unit = event.numbers, event.per_unit

    @property
    def rate(self) -> float | None:
        """Units per second; None before the first progress."""
        elapsed = self.seconds - self.first_seconds
        return (self.done - self.first_done) / elapsed if elapsed > 0 and self.done > self.first_done else None

    @property
    def left_seconds(self) -> float | None:
        """None where rate or total is not known."""
        return None if self.rate is None or self.total is None else max(0.0, self.total - self.done) / self.rate

    @property
    def share(self) -> float | None:
        """From 0 to 1."""
        return None if not self.total else min(1.0, self.done / self.total)

    def parts(self) -> Iterator[str]:
        """`340/980 steps`, `12.1 steps/s`, `53 s left`, `loss 1.23`: the most important first."""
        yield f"{number_text(self.done)}{'' if self.total is None else f'/{number_text(self.total)}'} {self.unit}"
        if self.rate is not None:
            rates = {self.unit: self.rate, **{unit: count * self.rate for unit, count in self.per_unit.items()}}
            # What people compare are tokens and pairs; steps and shards have any size.
            yield rate_text(rates[name := list(rates)[-1]], name)
        if self.left_seconds:
            yield f"{duration_text(self.left_seconds)} left"
        yield from (metric_of(name).text(value) for name, value in self.numbers.items() if value is not None)


@dataclass
class StageState:
    """The stage that runs."""

    name: str
    number: int | None
    """From 1, among the stages of the run; None for what is no stage, such as an input."""
    started: float
    expected_seconds: float | None = None
    task: TaskState | None = None

    @property
    def label(self) -> str:
        """Its name, and in parentheses the task where a stage has several."""
        return self.name if self.task is None or self.task.task == "train" else f"{self.name} ({self.task.task})"

    def left_seconds(self, now: float) -> float | None:
        """About how long it still takes; None where nothing is known. A task that is one of several says nothing about that."""
        if self.task is not None and self.task.task in WHOLE_STAGE_TASKS and self.task.left_seconds is not None:
            return self.task.left_seconds
        left = None if self.expected_seconds is None else self.expected_seconds - (now - self.started)
        return left if left is not None and left > 0 else None


class RunState:
    """Follows the events of a run. Of several stages that report at the same time, each has its own state."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.numbers: dict[str, int] = {}
        """Number of every stage of the run by its name, those included whose results are there."""
        self.running: dict[str, StageState] = {}
        self.later_seconds: float | None = None
        """About how long the stages after the current one take; None where one of them is not known."""
        self.finished: list[str] = []
        self.reused: list[str] = []
        self.failed: StageFailed | None = None
        """How a stage ended the run."""
        self.recipe = ""
        self.started = clock()

    def update(self, event: Event) -> None:
        """Take an event."""
        match event:
            case RunPlanned(recipe=recipe, stages=stages):
                names = [stage.name for stage in stages if stage.status != "skipped"]
                self.numbers = {name: number for number, name in enumerate(names, start=1)}
                self.recipe, self.started = recipe, self._clock()
            case StageStarted(stage=name, expected_seconds=expected, later_seconds=later):
                self.running[name] = StageState(name, self.numbers.get(name), self._clock(), expected)
                self.later_seconds = later
            case Progress(stage=name):
                self._progress(event)
            case StageFinished(stage=name):
                self.running.pop(name, None)
                self.finished.append(name)
            case StageCached(stage=name):
                self.running.pop(name, None)
                self.reused.append(name)
            case StageFailed(stage=name):
                self.running.pop(name, None)
                self.failed = event
            case _:
                pass

    def place(self, event: StageEvent) -> str:
        """`stage 3 of 19`; empty for what is no stage of the run."""
        number = self.numbers.get(event.stage)
        return "" if number is None else f"stage {number} of {len(self.numbers)}"

    def left_seconds(self) -> float | None:
        """About how long the run still takes; None where the time of a stage is not known."""
        stages = [stage.left_seconds(self._clock()) for stage in self.running.values() if stage.number is not None]
        known = [seconds for seconds in stages if seconds is not None]
        if not known or len(known) < len(stages) or self.later_seconds is None:
            return None
        return max(known) + self.later_seconds  # those that run side by side end with the longest

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._clock() - self.started

    def _progress(self, event: Progress) -> None:
        now = self._clock()
        stage = self.running.setdefault(event.stage, StageState(event.stage, self.numbers.get(event.stage), now))
        # A stage has several tasks, such as sampling and scoring. Each has its own unit and so its own rate.
        if stage.task is None or stage.task.task != event.task:
            stage.task = TaskState(event.task, event.unit, event.done, now)
        stage.task.update(event, now)
