"""Where the wall time of a process goes: every second belongs to the innermost phase that its thread is in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from types import TracebackType
from typing import Literal, get_args

Phase = Literal["start", "load", "engine", "tokenize", "sample", "score", "train", "save", "hash", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""In the order in which tables show them; docs/speed.md says what each is."""


class Profile:
    """The seconds of each phase, since it was made, without those of the phases inside it.

    Args:
        start: seconds that the process needed before.
    """

    def __init__(self, *, start: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._thread = threading.get_ident()
        self._began = self._since = clock()
        self._open: list[Phase] = []
        self._seconds: dict[Phase, float] = {"start": start} if start else {}
        self._began -= start

    @property
    def is_of_this_thread(self) -> bool:
        """Other threads are not counted: what they do, they do while the one that made the profile works or waits."""
        return threading.get_ident() == self._thread

    def enter(self, phase: Phase) -> None:
        self._count()
        self._open.append(phase)

    def leave(self) -> None:
        self._count()
        self._open.pop()

    def add(self, phase: Phase, seconds: float) -> None:
        """Add what was measured elsewhere."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def _count(self) -> None:
        now = self._clock()
        if self._open:
            self.add(self._open[-1], now - self._since)
        self._since = now

    def seconds(self) -> dict[Phase, float]:
        """Seconds by phase so far, to the millisecond, in the order of PHASES; phases that did not occur are left out.

        They add up to all the time, as `other` has what belongs to no phase.
        """
        self._count()
        found = {**self._seconds, "other": self._since - self._began - sum(self._seconds.values())}
        return {phase: round(found[phase], 3) for phase in PHASES if phase in found}


_current: Profile | None = None


@contextmanager
def profiled(*, start: float = 0.0) -> Iterator[Profile]:
    """A profile of what happens inside; one around it, as of a run whose stages share its process, goes on beside it."""
    global _current
    before, _current = _current, Profile(start=start)
    try:
        yield _current
    finally:
        _current = before


class phase(ContextDecorator):  # noqa: N801
    """Count the seconds of a block, or of the calls of a function, as a phase of the profile that there is, if any."""

    def __init__(self, name: Phase) -> None:
        self._name = name
        self._profile: Profile | None = None

    def _recreate_cm(self) -> phase:
        # A decorated function may be called inside itself, or by two threads.
        return phase(self._name)

    def __enter__(self) -> None:
        if _current is not None and _current.is_of_this_thread:
            self._profile = _current
            self._profile.enter(self._name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profile is not None:
            self._profile.leave()
