from __future__ import annotations

import threading

import pytest

from align.runtime.profile import Profile, phase, profiled


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_second_belongs_to_the_innermost_phase_and_all_add_up() -> None:
    clock = Clock()
    profile = Profile(start=3.0, clock=clock)
    clock.now += 1
    profile.enter("train")
    clock.now += 4
    profile.enter("save")
    clock.now += 0.5
    profile.leave()
    clock.now += 2
    profile.leave()
    clock.now += 0.25
    assert profile.seconds() == {"start": 3.0, "train": 6.0, "save": 0.5, "other": 1.25}


def test_a_phase_that_is_open_counts_so_far() -> None:
    clock = Clock()
    profile = Profile(clock=clock)
    profile.enter("load")
    clock.now += 2
    assert profile.seconds() == {"load": 2.0, "other": 0.0}
    clock.now += 1
    profile.leave()
    assert profile.seconds() == {"load": 3.0, "other": 0.0}


def test_an_error_leaves_the_phase() -> None:
    with profiled() as profile, pytest.raises(KeyError), phase("load"), phase("hash"):
        raise KeyError
    assert profile._open == []


def test_a_decorated_function_may_call_itself() -> None:
    depth: list[int] = []

    @phase("tokenize")
    def down(number: int) -> None:
        depth.append(len(profile._open))
        if number:
            down(number - 1)

    with profiled() as profile:
        down(2)
    assert depth == [1, 2, 3]
    assert profile._open == []


def test_without_a_profile_and_in_other_threads_nothing_is_counted() -> None:
    with phase("load"):
        pass

    def work() -> None:
        with phase("load"):
            assert profile._open == ["sample"]

    with profiled() as profile, phase("sample"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert set(profile.seconds()) == {"sample", "other"}


def test_a_profile_inside_another_takes_nothing_from_it() -> None:
    with profiled() as outer, phase("train"):
        with profiled() as inner, phase("load"):
            pass
        with phase("save"):
            pass
    assert set(outer.seconds()) == {"train", "save", "other"}
    assert set(inner.seconds()) == {"load", "other"}
