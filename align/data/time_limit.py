"""Limits of time and memory for untrusted code (a chat template)."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class TimeLimitExceeded(BaseException):
    """The limit passed. Not an Exception, so that a broad handler inside the limited code cannot swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitExceeded in the block when it takes longer than `seconds`.

    Signals can interrupt only the main thread of a POSIX process. Elsewhere, or if a timer is already running, the block runs
    without a limit.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeLimitExceeded

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # The timer stops first: an alarm after the old handler is back could end the process.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def memory_limit(extra_bytes: int) -> Iterator[None]:
    """Fail allocations in the block that take the process more than `extra_bytes` beyond its present size.

    Linux only, and in the main thread only, as the limit is the whole process's: elsewhere the block runs without a limit.
    """
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        yield
        return
    with open("/proc/self/statm", "rb", buffering=0) as sizes:
        pages = int(sizes.read(32).split()[0])  # of addresses
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # Never above a limit that holds already: the system refuses a soft limit above the hard one.
    bounds = [each for each in (soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([pages * resource.getpagesize() + extra_bytes, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
