"""Time left of a run, by hand."""

from __future__ import annotations

import pytest

from align.progress.state import RunState, rate_text
from align.runtime.events import Progress, StageFinished, StageStarted


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(done: float, task: str = "train") -> Progress:
    return Progress(stage="dpo", task=task, done=done, total=100, unit="steps")


def test_time_left_is_that_of_the_stage_and_of_those_after_it() -> None:
    clock = Clock()
    state = RunState(clock)
    state.numbers = {"dpo": 1, "compare": 2}
    state.update(StageStarted(stage="dpo", reason="", expected_seconds=50.0, later_seconds=30.0))
    assert state.left_seconds() == 50 + 30
    clock.now = 20.0
    assert state.left_seconds() == 30 + 30
    # From here on the stage's own progress counts: 10 steps in 5 s, so 80 steps take 40 s.
    state.update(step(10))
    clock.now = 25.0
    state.update(step(20))
    assert state.left_seconds() == 40 + 30
    state.update(StageFinished(stage="dpo", seconds=25.0))
    assert state.left_seconds() is None


def test_what_is_not_known_is_not_guessed() -> None:
    clock = Clock()
    state = RunState(clock)
    state.numbers = {"dpo": 1, "compare": 2}
    state.update(StageStarted(stage="dpo", reason="", expected_seconds=None, later_seconds=None))
    state.update(step(10))
    clock.now = 5.0
    state.update(step(20))
    # The stage would take 40 s; of the one after it nothing is known.
    assert state.left_seconds() is None
    state.later_seconds = 0.0
    assert state.left_seconds() == 40
    # A task that is one of several parts says nothing about the stage, and an expectation that has passed neither.
    state.update(step(10, task="reference"))
    clock.now = 10.0
    state.update(step(20, task="reference"))
    assert state.left_seconds() is None
    state.running["dpo"].expected_seconds = 8.0
    assert state.left_seconds() is None


@pytest.mark.parametrize(
    ("rate", "text"), [(0.05, "20 s per step"), (0.5, "0.5 steps/s"), (12.34, "12.3 steps/s"), (4244.6, "4,245 steps/s")]
)
def test_rates(rate: float, text: str) -> None:
    assert rate_text(rate, "steps") == text
