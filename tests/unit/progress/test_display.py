"""Progress as plain lines and as bars."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from align.progress.display import LiveDisplay, ProgressDisplay
from align.runtime.events import (
    Event,
    Metrics,
    Note,
    Progress,
    Quarantined,
    RunFinished,
    RunPlanned,
    Sample,
    StageCached,
    StageFailed,
    StageFinished,
    StagePlan,
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
        (StageCached(stage="dpo", seconds=3.0), "dpo: reused"),
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


NAMES = ("지도학습", "보상모델", "[red]후보-생성", "dpo")


def planned(*names: str, cached: int = 0) -> RunPlanned:
    stages = (
        StagePlan(name=name, stage_type="sft", status="cached" if number < cached else "run", reason="", fingerprint=name)
        for number, name in enumerate(names)
    )
    return RunPlanned(recipe="첫-실험", stages=tuple(stages))


def test_a_run_in_plain_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        display.handle(planned(*NAMES, cached=2))
        display.handle(StageCached(stage="지도학습", seconds=30.0, source="an earlier run"))
        display.handle(StageCached(stage="보상모델", seconds=30.0, source="an earlier run"))
        display.handle(StageStarted(stage=NAMES[2], reason="seed: 1 → 2", expected_seconds=100.0, later_seconds=200.0))
        clock.now += 40
        display.handle(StageFinished(stage=NAMES[2], seconds=40))
        display.handle(StageCached(stage="dpo", seconds=30.0, source=NAMES[2]))
        display.handle(RunFinished(exit_code=0))
    assert stream.getvalue().splitlines() == [
        "지도학습, 보상모델: reused from an earlier run",
        "[red]후보-생성: started, stage 3 of 4, about 5 min left in the run (seed: 1 → 2)",
        "[red]후보-생성: done in 40 s",
        "dpo: reused from [red]후보-생성",
        "첫-실험: done in 40 s, 1 stage ran and 3 were reused",
    ]


def test_stages_side_by_side_in_plain_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        display.handle(planned("rs", "orpo", "compare"))
        for name, other, seconds in (("rs", "orpo", 100.0), ("orpo", "rs", 60.0)):
            started = StageStarted(stage=name, reason="", expected_seconds=seconds, later_seconds=200.0, beside=(other,))
            display.handle(started)
        display.handle(step(0, stage="rs"))
        display.handle(step(0, stage="orpo"))
        clock.now += 10
        display.handle(step(10, stage="orpo"))
        display.handle(StageFinished(stage="orpo", seconds=10))
        display.handle(step(20, 40, stage="rs"))
    assert stream.getvalue().splitlines() == [
        "rs: started, stage 1 of 3, beside orpo, about 5 min left in the run",
        "orpo: started, stage 2 of 3, beside rs, about 5 min left in the run",
        "orpo: 10/980 steps, 1 steps/s, 16 min 10 s left, about 20 min left in the run",
        "orpo: done in 10 s",
        "rs: 20/40 steps, 2 steps/s, 10 s left, about 4 min left in the run",
    ]


def test_a_rate_in_what_people_compare() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        display.handle(step(0, 100))
        clock.now += 10
        display.handle(replace(step(20, 100), per_unit={"pairs": 16.0}))
        clock.now += 100
        display.handle(replace(step(21, 100, task="generate"), unit="shards"))
        clock.now += 400
        display.handle(replace(step(41, 100, task="generate"), unit="shards"))
    # 2 steps of 16 pairs in a second; 20 shards in 400 seconds.
    assert stream.getvalue().splitlines()[0] == "sft: 20/100 steps, 32 pairs/s, 40 s left"
    assert stream.getvalue().splitlines()[-1] == "sft (generate): 41/100 shards, 20 s per shard, 19 min 40 s left"


def test_hours_of_training_fill_no_log() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(stream, clock) as display:
        for second in range(36_000):
            clock.now = float(second)
            display.handle(step(second, 36_000))
    # Every 5 s at first, every 20th of the time so far later on, and every 5 minutes at the least.
    assert 120 < len(stream.getvalue().splitlines()) < 200


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("color", [True, False])
def test_a_terminal_shows_run_and_stage_and_cuts_nothing(width: int, color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream, clock = Terminal(), Clock()
    with ProgressDisplay(stream, clock) as display:
        live = display._display
        assert isinstance(live, LiveDisplay)
        live._live.stop()  # drawn below instead, at a known moment
        display.handle(planned(*NAMES))
        display.handle(StageStarted(stage="보상모델", reason="no result yet", expected_seconds=60.0, later_seconds=3600.0))
        assert drawn(live) == ["stage 2 of 4: 보상모델, about 61 min left in the run", "  running for 0.0 s"]
        display.handle(step(10, stage="보상모델"))
        clock.now += 10
        display.handle(replace(step(490, stage="보상모델", loss=2.5), per_unit={"pairs": 768.0}))
        heading, bar = drawn(live)
        assert heading == "stage 2 of 4: 보상모델, about 60 min left in the run"
        end = "490/980 steps, 36,864 pairs/s, 10 s left" + ("" if width == 60 else ", loss 2.5")
        assert bar.lstrip("━╸╺ ") == end
        display.handle(Note(stage="보상모델", text="낱말 몇 개가 이어지는 아주 긴 줄 " * 6))
        display.handle(StageFinished(stage="보상모델", seconds=10))
        assert drawn(live) == []
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(cell_len, lines)) <= width
    assert {word for line in lines for word in line.split() if "이어지는" in word} == {"이어지는"}
    # Yellow and white are lost on a white background.
    assert not re.search(r"\x1b\[(?:\d+;)*(?:33|37|93|97)m", stream.getvalue())
    assert color or "\x1b[3" not in stream.getvalue().replace("\x1b[38", "")


def drawn(live: LiveDisplay) -> list[str]:
    with live._console.capture() as capture:
        live._console.print(live)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def test_time_left_gets_a_line_of_its_own_beside_a_long_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    name = "두-번째-라운드의-후보-생성-과정"
    with ProgressDisplay(Terminal(), Clock()) as display:
        live = display._display
        assert isinstance(live, LiveDisplay)
        live._live.stop()
        display.handle(planned(name))
        display.handle(StageStarted(stage=name, reason="", expected_seconds=60.0, later_seconds=3600.0))
        assert drawn(live) == [f"stage 1 of 1: {name}", "  about 61 min left in the run", "  running for 0.0 s"]


def test_square_brackets_in_a_name_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ProgressDisplay(stream) as display:
        display.handle(StageStarted(stage="[red]모델", reason=""))
        display.handle(StageFinished(stage="[red]모델", seconds=10))
    assert "[red]모델: started" in stream.getvalue()
    assert "[red]모델: done in 10 s" in stream.getvalue()
