"""What all executors of several workers do with items: draw them as they are needed, deliver results, and remember a stop."""

from __future__ import annotations

import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from align.errors import Interrupted, StageError
from align.runtime.process import RemoteTraceback

POLL_SECONDS = 0.2
STOP_SECONDS = 45.0
"""How long items under way may take to end after a stop; less than the runner waits before it kills the stage."""

T = TypeVar("T")
R = TypeVar("R")


class WorkerDied(StageError):
    """The process of a worker ended before its work was done."""


def never_stop() -> None:
    """For callers that nobody can stop."""


class ItemFlow(Generic[T, R]):
    """The items of one `Executor.map`, whose arguments it takes."""

    def __init__(
        self, items: Iterable[T], on_done: Callable[[T, R], None], check_stop: Callable[[], None], *, in_order: bool
    ) -> None:
        self._items: Iterator[tuple[int, T]] = enumerate(items)
        self._on_done = on_done
        self._check_stop = check_stop
        self._in_order = in_order
        self._waiting: dict[int, tuple[T, R]] = {}
        self._num_drawn = self._num_delivered = 0
        self._give_up_at = 0.0
        self.stop: Interrupted | None = None
        """Raised by `check_stop` or `on_done`: no item is begun from then on."""

    @property
    def given_up(self) -> bool:
        """Whether items under way have had their time after a stop."""
        return self.stop is not None and time.monotonic() > self._give_up_at

    def draw(self, room: int) -> tuple[int, T] | None:
        """The next item and its number; None if there is none, or not yet.

        Args:
            room: items that workers can hold together. Results that wait for an earlier one are bounded by it, because they may
                be large.
        """
        if self._num_drawn - self._num_delivered >= (room if self._in_order else sys.maxsize):
            return None
        drawn = next(self._items, None)
        self._num_drawn += drawn is not None
        return drawn

    def first(self, room: int) -> list[tuple[int, T]]:
        """The items that `room` workers begin with; fewer if there are not so many."""
        draws = (self.draw(room) for _ in range(room))
        return [drawn for drawn in draws if drawn is not None]

    def deliver(self, number: int, item: T, result: R) -> None:
        """Hand on a result, and those that waited for it."""
        # A result waits for those with lower numbers; without an order it takes the next place.
        self._waiting[number if self._in_order else self._num_delivered] = (item, result)
        while (delivered := self._waiting.pop(self._num_delivered, None)) is not None:
            self._num_delivered += 1
            self._unless_stopped(self._on_done, *delivered)

    def check_stop(self) -> None:
        """Called a few times a second."""
        self._unless_stopped(self._check_stop)

    def raise_stop(self) -> None:
        """Raise Interrupted if there is a stop, at this moment or before."""
        self.check_stop()
        if self.stop is not None:
            raise self.stop

    def _unless_stopped(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Interrupted as stop:
            if self.stop is None:
                self.stop, self._give_up_at = stop, time.monotonic() + STOP_SECONDS


def answer(do: Callable[[], Any]) -> bytes:
    """What `do` returns or raises, for `open_answer` in another process; the log gets the traceback."""
    try:
        return pickle.dumps((do(), None, ""))
    except Exception as error:
        traceback.print_exc()
        return pickle.dumps((None, _portable(error), traceback.format_exc()))


def open_answer(content: bytes) -> Any:
    """The result in an answer.

    Raises:
        What was raised there, with its traceback as the cause.
    """
    result, error, trace = pickle.loads(content)
    if error is not None:
        raise error from RemoteTraceback(trace)
    return result


def _portable(error: Exception) -> Exception:
    """The error itself if it can be pickled and restored; else a StageError with its text."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # whatever its pickling raises
        pass
    return StageError(f"{type(error).__name__}: {error}", hint="The log has the traceback.")
