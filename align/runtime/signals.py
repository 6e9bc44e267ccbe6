"""Signals: SIGINT, SIGTERM and SIGHUP ask to stop, where no finished part is lost; SIGUSR1 asks for a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that a terminal or a scheduler sends to every process of a run, where the runner alone decides."""


class StopSignals:
    """The signals that asked to stop, oldest first. Calling it gives the number of the first one, or None."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.second_interrupts = False
        """Raise KeyboardInterrupt at the second signal, if the stage has no process of its own that could be killed instead."""
        self._terminals: list[int] = []
        """Descriptors of output that led to a terminal."""
        self.checkpoint_files: list[Path] = []
        """Files that SIGUSR1 creates: the jobs that run look for them, in whichever process or machine they train."""

    def __call__(self) -> int | None:
        return self.received[0] if self.received else None

    def remember(self, number: int, _: Any = None) -> None:
        """A signal handler."""
        self.received.append(number)
        if number == signal.SIGHUP:
            self._leave_terminal()
        if self.second_interrupts and len(self.received) > 1:
            raise KeyboardInterrupt

    def ask_for_checkpoint(self, number: int = 0, _: Any = None) -> None:
        """A signal handler: have each training that runs write a checkpoint after its step, and go on."""
        for path in self.checkpoint_files:
            with suppress(OSError):  # the stage may just have ended
                path.touch()

    def _leave_terminal(self) -> None:
        """Drop what follows, if the terminal is gone: writing to it is an error, which must not take the place of the stop."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Handle the signals inside; Python allows that in the main thread only. SIGHUP stays ignored under nohup."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[int, Any] = dict.fromkeys(STOPS, self.remember)
        handlers[signal.SIGUSR1] = self.ask_for_checkpoint
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            del handlers[signal.SIGHUP]
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def ignore(numbers: Iterable[int]) -> None:
    """Ignore signals from now on, as the processes of a run do with those that the runner decides about."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ignored(*numbers: int) -> Iterator[None]:
    """Ignore signals inside the block; processes started there inherit that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
