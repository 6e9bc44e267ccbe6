"""How fast and how often an endpoint may be asked: a token bucket, the waits between repeated requests, a budget."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0


class TokenBucket:
    """Spaces requests out: on average `per_minute`, at most one second's worth of them at once."""

    def __init__(self, per_minute: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._burst = max(1.0, self._per_second or 0)
        self._tokens = self._burst
        self._clock = clock
        self._filled_at = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token; how many seconds to wait until it may be used."""
        if self._per_second is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
            self._filled_at = now
            self._tokens -= 1
            return max(0.0, -self._tokens / self._per_second)


class Budget:
    """Requests that may still be sent."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._lock = threading.Lock()
        self.spent = 0

    def spend(self) -> bool:
        """Count one more request; False where there is none left."""
        with self._lock:
            if self._most is not None and self.spent >= self._most:
                return False
            self.spent += 1
            return True


def backoff_seconds(attempt: int) -> float:
    """Wait after failure number `attempt`, from 0: doubling, with jitter, so that those who failed together part."""
    longest: float = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
    return longest * random.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None, *, now: Callable[[], float] = time.time) -> float | None:
    """What an endpoint's Retry-After asks for, in seconds or as a date; None where it asks for nothing readable."""
    if header is None:
        return None
    try:
        return max(0.0, float(header)) if float(header) < float("inf") else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now())
    except (ValueError, TypeError, OverflowError):
        return None
