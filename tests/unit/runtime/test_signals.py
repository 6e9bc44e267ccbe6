"""Signals: which of them ask to stop, which for a checkpoint, and which stay as they are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from align.errors import Interrupted
from align.runtime.rank import Beat
from align.runtime.rank_watch import Watch
from align.runtime.signals import STOPS, StopSignals
from align.runtime.spread import Spread


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_asks_to_stop_and_decides_the_exit_code(number: signal.Signals) -> None:
    stop = StopSignals()
    before = signal.getsignal(number)
    with stop.active():
        os.kill(os.getpid(), number)
    assert stop() == number and signal.getsignal(number) == before
    assert Interrupted("", signal_number=number).exit_code == 128 + number


def test_nohup_keeps_a_run_alive() -> None:
    stop, before = StopSignals(), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.active():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop() is None


def test_a_terminal_that_is_gone_takes_no_error_with_it() -> None:
    ours, theirs = os.openpty()
    before = os.dup(2)
    os.dup2(theirs, 2)
    os.close(theirs)
    try:
        stop = StopSignals()
        with stop.active():
            os.close(ours)  # the terminal's window
            with pytest.raises(OSError, match="Input/output"):
                os.write(2, b"x")
            os.kill(os.getpid(), signal.SIGHUP)
            os.write(2, b"stopped")
    finally:
        os.dup2(before, 2)
        os.close(before)


def test_usr1_asks_for_a_checkpoint_and_stops_nothing(tmp_path: Path) -> None:
    stop = StopSignals()
    stop.checkpoint_files = [tmp_path / "gone" / "a", tmp_path / "a"]
    with stop.active():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop() is None and (tmp_path / "a").exists()


def test_a_suspended_run_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("align.runtime.rank_watch.time.monotonic", lambda: now)
    watch = Watch(Spread(1, "ddp", hang_minutes=1.0), lambda event: None, lambda: None)
    watch.take(0, Beat(pid=10, idle_seconds=0.0))
    for _ in range(3):
        watch.awake()
        assert not watch.finds_hang()
        now += 3600
    now -= 3600
    for _ in range(60):  # awake, but the rank says nothing
        now += 1
        watch.awake()
    assert watch.finds_hang()
