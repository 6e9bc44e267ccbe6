"""When ranks count as hung: what they said decides, and the clock."""

from __future__ import annotations

import pytest

from align.errors import DataError, StageError
from align.runtime import rank_watch
from align.runtime.rank import Beat, Ended
from align.runtime.rank_watch import RankBug, Watch
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


@pytest.mark.parametrize("first", [None, Ended(at=1.0, trace="RuntimeError: Gloo connectFullMesh failed")])
def test_a_rank_that_was_killed_when_it_was_done_is_named(first: Ended | None) -> None:
    """Before rank 0 was done, or had connected to it: what rank 0 says follows from that."""
    ranks = watch()
    ranks.take(1, Ended(at=0.0))
    if first is not None:
        ranks.take(0, first)
    with pytest.raises(StageError, match=r"rank 1 of 2 was killed by signal 9 \(SIGKILL\) before it was done"):
        ranks.result({1: -9, 0: 1})


def test_an_error_of_rank_0_is_its_own_if_it_is_known_or_the_other_was_merely_ended() -> None:
    for ended, code, expected in (
        (Ended(at=1.0, error=DataError("row 7"), trace="…"), -9, DataError),
        (Ended(at=1.0, trace="IndexError: nobody thought of this"), -15, RankBug),
    ):
        ranks = watch()
        ranks.take(1, Ended(at=0.0))
        ranks.take(0, ended)
        with pytest.raises(expected):
            ranks.result({1: code, 0: 1})
