"""The surroundings of long work: where it keeps unfinished files, where it reports, and how it learns of a request to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import Interrupted
from align.metric import not_finite
from align.runtime.pool import LOCAL, Pool
from align.runtime.profile import phase
from align.runtime.spread import ALONE, Spread

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    # Imported late: recipes are read with this module, and the classes of all events take longer to make than it.
    from align.runtime.events import Emit, Event, SampledText

CHECKPOINT_NAME = "checkpoint-now"
SHOWN_COMPLETIONS = 3
"""Completions of a `Sample`."""


def _nobody(event: Event) -> None:
    """Takes events that nobody reads."""


def _never() -> int | None:
    return None


@dataclass(frozen=True)
class MemoryChoice:
    """What a training does to fit into memory, where its configuration leaves that to the machine. It changes only rounding."""

    micro_batch_size: int | None = None
    """None: the whole batch_size, or what the configuration says."""
    gradient_checkpointing: bool = False
    """False: as the configuration says, or off."""

    def __str__(self) -> str:
        size = "" if self.micro_batch_size is None else f"micro_batch_size {self.micro_batch_size}"
        return " and ".join(filter(None, (size, "gradient_checkpointing" if self.gradient_checkpointing else "")))


PLAIN = MemoryChoice()
"""Nothing has to be done."""


@dataclass(kw_only=True)
class RunContext:
    """What trainers and samplers need to know about the run that they are part of."""

    name: str
    """Name of this stage in the recipe."""
    work: Path
    """Survives interruptions, and is removed when the stage is committed: unfinished shards and checkpoints live here."""
    seed: int
    """Every random number follows from it."""
    pool: Pool = LOCAL
    """Where the workers of sampling and scoring work."""
    engine_host: Connection | None = None
    """Where the stage reaches the engine that the stages of a run share; None: it starts one of its own."""
    memory: MemoryChoice = PLAIN
    rank: int = 0
    """Number of this process among those that run the stage together, from 0."""
    spread: Spread = ALONE
    """How many processes run the stage together, and what each of them holds."""
    emit: Emit = _nobody
    """Takes events as they happen."""
    stop_requested: Callable[[], int | None] = _never
    """The number of the signal that asked to stop, or None."""
    _noted: set[str] = field(default_factory=set, init=False, repr=False)
    """Metrics of which it was said that they are not finite."""

    @property
    def checkpoint_request(self) -> Path:
        """A file that is there when a checkpoint is wanted now (SIGUSR1). Every process that could write one sees it."""
        return self.work / CHECKPOINT_NAME

    @property
    def is_first(self) -> bool:
        """Whether this process writes what a stage writes once: the only one, or rank 0."""
        return self.rank == 0

    def progress(
        self,
        task: str,
        done: float,
        total: float | None,
        unit: str,
        per_unit: Mapping[str, float] | None = None,
        **numbers: float,
    ) -> None:
        """Report that `done` of `total` (None: unknown) `unit`s are finished.

        Args:
            per_unit: what one unit is made of, on average, such as 16 pairs: readers make a rate of it.
            numbers: shown beside it, such as the loss.
        """
        from align.runtime.events import Progress

        event = Progress(stage=self.name, task=task, done=done, total=total, unit=unit, numbers=numbers, per_unit=per_unit or {})
        self.emit(event)

    def metrics(self, row: Mapping[str, float]) -> None:
        """Report a row of the stage's curves: numbers by name, `step` among them. See `Metrics` for a step that comes again."""
        from align.runtime.events import Metrics

        values = {name: value for name, value in row.items() if name != "step"}
        for name, value in not_finite(values):
            if name not in self._noted:
                self._noted.add(name)
                self.note(f"{name} is {value} at step {int(row['step'])}: its curve has a hole there")
        self.emit(Metrics(stage=self.name, step=int(row["step"]), values=values))

    def note(self, text: str) -> None:
        """Report one line that the user should read."""
        from align.runtime.events import Note

        self.emit(Note(stage=self.name, text=text))

    def sample(self, step: int, completions: Iterable[SampledText]) -> None:
        """Report the first few of the completions sampled at `step`."""
        from align.runtime.events import Sample

        self.emit(Sample(stage=self.name, step=step, completions=tuple(islice(completions, SHOWN_COMPLETIONS))))

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around the writing of what must not be cut short: a request to stop waits for its end, however long it takes."""
        from align.runtime.events import Saving

        started = time.perf_counter()
        self.emit(Saving(stage=self.name))
        try:
            with phase("save"):
                yield
        finally:
            self.emit(Saving(stage=self.name, seconds=round(time.perf_counter() - started, 3)))

    def check_stop(self) -> None:
        """Raise Interrupted if a stop was requested; called where stopping loses no finished work."""
        number = self.stop_requested()
        if number is not None:
            raise Interrupted("Stopped; what is finished is kept.", signal_number=number)

    def counter(self, task: str, unit: str, per_unit: Mapping[str, float] | None = None) -> Callable[[int, int], None]:
        """A function to be called with (done, total) of `task`, between pieces of work. A requested stop takes effect there."""

        def count(done: int, total: int) -> None:
            self.progress(task, done, total, unit, per_unit)
            self.check_stop()

        return count
