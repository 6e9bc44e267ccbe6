"""Processes that compute together: what they tell each other, and how they end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rank_jobs

from align.errors import DataError, Interrupted, StageError
from align.runtime import rank_watch
from align.runtime.events import Event, Note
from align.runtime.rank_watch import RankBug
from align.runtime.ranks import run_ranks
from align.runtime.spread import Spread

pytestmark = pytest.mark.slow

LOCAL = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1, as the kernel writes them."""


def run(
    work: Callable[..., Any], folder: Path, *, processes: int = 2, stop: int | None = None, hang_minutes: float = 5.0
) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    spread = Spread(processes, "ddp", hang_minutes)
    result = run_ranks(work, spread, folder=folder / "ranks", emit=events.append, stop_requested=lambda: stop)
    return result.value, events


def test_all_ranks_hear_each_other_and_the_caller_hears_rank_0(tmp_path: Path) -> None:
    value, events = run(rank_jobs.talk, tmp_path, processes=3)
    assert value == [[0, 1, 2], "said by 0", True, False]
    assert [event.text for event in events if isinstance(event, Note)] == ["from 0"]


def test_a_group_of_one_is_a_group(tmp_path: Path) -> None:
    value, _ = run(rank_jobs.talk, tmp_path, processes=1)
    assert value == [[0], "said by 0", False, False]


def test_ranks_are_spawned_where_there_are_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert run(rank_jobs.talk, tmp_path)[0] == [[0, 1], "said by 0", True, False]


def test_a_rank_that_is_killed_ends_all_and_is_named(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(StageError, match=r"rank 1 of 2 was killed by signal 9 \(SIGKILL\) before it was done"):
        run(rank_jobs.die, tmp_path)
    assert time.monotonic() - started < 60
    with pytest.raises(StageError, match=r"rank 1 of 2 was killed by signal 9"):
        run(rank_jobs.die_when_done, tmp_path)


def test_the_error_is_that_of_the_rank_that_failed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 7: no prompt"):
        run(rank_jobs.fail, tmp_path)
    with pytest.raises(RankBug, match="(?s)rank 1 failed.*nobody thought of this"):
        run(rank_jobs.break_down, tmp_path)


def test_a_request_to_stop_reaches_every_rank(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        run(rank_jobs.stop_when_told, tmp_path, stop=signal.SIGTERM)
    assert caught.value.signal_number == signal.SIGTERM


def test_a_frozen_rank_is_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "FROZEN_SECONDS", 3.0)
    with pytest.raises(StageError, match=r"rank 1 \(process \d+\) has not answered for \d s; its last step was \d+ s ago"):
        run(rank_jobs.freeze, tmp_path)


def test_ranks_without_a_step_are_ended(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no rank has finished a step for \d s \(last: rank 0 \d s ago, rank 1 \d s ago\)"):
        run(rank_jobs.never_step, tmp_path, hang_minutes=2 / 60)


def test_ranks_that_wait_for_one_which_gets_on_do_not_hang(tmp_path: Path) -> None:
    run(rank_jobs.step_while_the_others_wait, tmp_path, hang_minutes=4 / 60)


def test_nothing_listens_beyond_this_machine(tmp_path: Path) -> None:
    value, _ = run(rank_jobs.addresses, tmp_path)
    assert value  # the meeting point listens
    assert set(value) <= LOCAL
