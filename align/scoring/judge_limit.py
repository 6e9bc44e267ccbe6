"""A rate limit for requests, and the waits before a retry."""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Callable

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0


class RateLimit:
    """Spaces requests out: on average `per_minute`, at most one second's worth of them at once; None for no limit."""

    def __init__(self, per_minute: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._ahead = max(0.0, 1 - self._interval)
        self._clock = clock
        self._free_at = -math.inf
        self._lock = threading.Lock()

    def take(self) -> float:
        """Reserve the next request; seconds to wait before it may be sent."""
        with self._lock:
            now = self._clock()
            # Time in which nothing was sent counts for at most one second of requests.
            self._free_at = max(self._free_at, now - self._ahead)
            seconds = max(0.0, self._free_at - now)
            self._free_at += self._interval
            return seconds


def backoff_seconds(attempt: int) -> float:
    """Wait after failure number `attempt`, from 0. It doubles each time; jitter spreads threads that failed together."""
    longest: float = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
    return longest * random.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None, *, now: Callable[[], float] = time.time) -> float:
    """The wait that a Retry-After header (seconds or a date) requires, in seconds; 0 without a readable header."""
    try:
        seconds = float(header or 0)
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(header)).timestamp() - now())
    except (ValueError, TypeError, OverflowError):
        return 0.0
