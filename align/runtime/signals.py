"""Requests to stop: SIGINT and SIGTERM are recorded, so that work can stop where it loses no finished part."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopSignals:
    """The signals that asked to stop, oldest first. Calling it gives the number of the first one, or None."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.second_interrupts = False
        """Raise KeyboardInterrupt at the second signal, if the stage has no process of its own that could be killed instead."""

    def __call__(self) -> int | None:
        return self.received[0] if self.received else None

    def remember(self, number: int, _: Any = None) -> None:
        """A signal handler."""
        self.received.append(number)
        if self.second_interrupts and len(self.received) > 1:
            raise KeyboardInterrupt

    @contextmanager
    def active(self) -> Iterator[None]:
        """Remember SIGINT and SIGTERM inside; Python allows that in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def ignored(number: int) -> Iterator[None]:
    """Ignore signal `number` inside the block; processes started there inherit that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
