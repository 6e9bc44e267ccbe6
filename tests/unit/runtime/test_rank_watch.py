"""When ranks count as hung: what they said decides, and the clock."""

from __future__ import annotations

import pytest

from align.runtime import rank_watch
from align.runtime.rank import Beat, Ended
from align.runtime.rank_watch import Watch
from align.runtime.spread import Spread


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rank_watch, "time", clock)
    return clock


def watch() -> Watch:
    return Watch(Spread(2, "ddp", hang_minutes=1.0), lambda event: None, lambda: None)


def test_a_rank_that_waited_for_one_which_has_just_ended_does_not_hang(clock: Clock) -> None:
    ranks = watch()
    for second in range(0, 90, 10):  # rank 0 gets on, rank 1 waits for it
        clock.now = 1000.0 + second
        ranks.take(0, Beat(pid=10, idle_seconds=0.0))
        ranks.take(1, Beat(pid=11, idle_seconds=second))
        assert not ranks.finds_hang()
    ranks.take(0, Ended(at=0.0))
    assert not ranks.finds_hang()
    clock.now += 30
    ranks.take(1, Beat(pid=11, idle_seconds=110.0))
    assert not ranks.finds_hang()


def test_a_rank_that_does_not_end_after_the_others_hangs(clock: Clock) -> None:
    ranks = watch()
    for rank in (0, 1):
        ranks.take(rank, Beat(pid=10 + rank, idle_seconds=0.0))
    ranks.take(0, Ended(at=0.0))
    clock.now += 61
    ranks.take(1, Beat(pid=11, idle_seconds=61.0))
    assert ranks.finds_hang()
