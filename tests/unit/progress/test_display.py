"""Progress as plain lines and as bars."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from align.progress.display import ProgressDisplay
from align.runtime.events import (
    Event,
    Metrics,
    Note,
    Progress,
    Quarantined,
    RunFinished,
    Sample,
    StageCached,
    StageFailed,
    StageFinished,
    StageStarted,
    Waiting,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(done: float, total: float | None = 980, stage: str = "sft", task: str = "train", **numbers: float) -> Progress:
    return Progress(stage=stage, task=task, done=done, total=total, unit="steps", numbers=numbers)


def test_a_line_says_how_far_how_fast_and_how_long() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        display.handle(step(98))
        clock.now += 20
        display.handle(step(340, loss=1.23))
    assert stream.getvalue() == "sft: 340/980 steps, 12.1 steps/s, 53 s left, loss 1.23\n"


def test_at_most_one_line_in_five_seconds_per_stage() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        for done in range(100):
            clock.now += 0.2
            display.handle(step(done))
            display.handle(step(done, stage="other"))
    lines = stream.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["sft", "other"] * 3


def test_the_rate_leaves_out_what_was_done_before_an_interruption() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        display.handle(step(900, 1000))
        clock.now += 10
        display.handle(step(910, 1000))
    assert stream.getvalue() == "sft: 910/1,000 steps, 1 steps/s, 90 s left\n"


def test_an_unknown_total_and_another_task() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        display.handle(step(1, None, task="reference"))
        clock.now += 6
        display.handle(step(7, None, task="reference"))
    assert stream.getvalue() == "sft (reference): 7 steps, 1 steps/s\n"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (StageStarted(stage="dpo", reason="no result yet"), "dpo: started (no result yet)"),
        (StageCached(stage="dpo", seconds=3.0), "dpo: done before"),
        (Note(stage="dpo", text="2 rows dropped"), "dpo: 2 rows dropped"),
        (Waiting(stage="dpo", holder="process 1 on h, since t"), "dpo: waiting for process 1 on h, since t"),
        (Quarantined(stage="dpo", path="q", problem="x is missing"), "dpo: damaged result set aside in q: x is missing"),
        (
            StageFinished(
                stage="dpo", seconds=125, metrics={"loss": 0.5, "rewards/accuracies": 0.875, "ok": True, "steps": 9, "new": 1}
            ),
            "dpo: done in 2 min 05 s, loss 0.5, pairs ranked right 87.5 %",
        ),
        (StageFinished(stage="dpo", seconds=1), "dpo: done in 1.0 s"),
    ],
)
def test_lines_of_events(event: Event, line: str) -> None:
    stream = io.StringIO()
    with ProgressDisplay(stream) as display:
        display.handle(event)
        display.handle(Metrics(stage="dpo", step=1, values={"loss": 0.5}))
        display.handle(Sample(stage="dpo", step=1, completions=()))
        display.handle(StageFailed(stage="dpo", error="main() says it", exit_code=5))
        display.handle(RunFinished(exit_code=5))
    assert stream.getvalue() == f"{line}\n"


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    with ProgressDisplay(stream, clock) as display:
        display.handle(StageStarted(stage="[red]모델", reason=""))
        display.handle(step(10, stage="[red]모델"))
        clock.now += 10
        display.handle(step(490, stage="[red]모델", loss=2.5))
        live = display._display
        (task,) = live._progress.tasks  # type: ignore[union-attr]
        assert task.percentage == 50
        assert task.fields["detail"] == "490/980 steps, 48 steps/s, 10 s left, loss 2.5"
        display.handle(StageFinished(stage="[red]모델", seconds=10))
        assert not live._progress.tasks  # type: ignore[union-attr]
    # Square brackets in a name are text, not markup.
    assert "[red]모델: started" in stream.getvalue()
    assert "[red]모델: done in 10 s" in stream.getvalue()
    assert cell_len("모델") == 4
