"""Signs of life: long work says that it gets on, and whoever watches over this process learns of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nobody() -> None:
    """Nobody watches."""


_listener: Callable[[], None] = _nobody


def still_working() -> None:
    """Say that something was done: a token drawn, a pass computed. Any thread may say it, often; it is cheap."""
    _listener()


@contextmanager
def watched_by(listener: Callable[[], None]) -> Iterator[None]:
    """Within it, `listener` is called with every sign of life of this process, in the thread that gives it."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
