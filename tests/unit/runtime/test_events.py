"""Events as lines of a file: there and back, cut, throttled, and as curves."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from align.errors import EnvironmentProblem
from align.runtime.event_file import EVENTS_NAME, JsonlSink, read_events
from align.runtime.events import (
    KINDS,
    Event,
    Metrics,
    Note,
    Progress,
    Quarantined,
    RunFinished,
    RunPlanned,
    Sample,
    SampledText,
    Saving,
    StageCached,
    StageFailed,
    StageFinished,
    StagePlan,
    StageStarted,
    Waiting,
    from_json,
    to_json,
)
from align.runtime.replay import metrics_of

DPO = StagePlan(name="dpo", stage_type="dpo", status="run", reason="no result yet", fingerprint="0f3a")
EXAMPLES = [
    RunPlanned(recipe="tiny", command=("align", "run"), stages=(DPO,)),
    StageStarted(stage="dpo", reason="no result yet"),
    StageCached(stage="sft", seconds=1.5),
    Progress(stage="dpo", task="train", done=3, total=None, unit="steps", numbers={"loss": 0.5}),
    Metrics(stage="dpo", step=3, values={"loss": 0.5, "rewards/chosen": -0.25}),
    Note(stage="dpo", text="한 줄\n\u2028 und noch eine"),
    Sample(stage="dpo", step=1, completions=(SampledText(prompt_id="p1", completion="네.", score=None),)),
    Saving(stage="dpo"),
    Waiting(stage="tiny", holder="process 1"),
    Quarantined(stage="dpo", path="q", problem="x is missing"),
    StageFinished(stage="dpo", seconds=2.0, metrics={"loss": 0.5, "epochs": {"1": [1, None]}}),
    StageFailed(stage="dpo", error="it diverged", exit_code=5),
    RunFinished(exit_code=5, error="it diverged"),
]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def step(done: float, total: float | None = 100, task: str = "train") -> Progress:
    return Progress(stage="sft", task=task, done=done, total=total, unit="steps")


def test_every_kind_goes_there_and_back() -> None:
    assert {type(event) for event in EXAMPLES} == set(KINDS.values())
    for event in EXAMPLES:
        line = to_json(event)
        assert "\n" not in line
        assert from_json(line) == event


def test_a_number_that_is_not_finite_is_null() -> None:
    line = to_json(Metrics(stage="dpo", step=1, values={"loss": math.nan, "norm": math.inf, "lr": 0.5}))
    assert json.loads(line)["values"] == {"loss": None, "norm": None, "lr": 0.5}
    assert from_json(line).values == {"loss": None, "norm": None, "lr": 0.5}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 2}, "an event of version 2; this is align for version 1"),
        ({"kind": "shutdown"}, "an event of an unknown kind, 'shutdown'"),
        ({"kind": ["note"]}, r"an event of an unknown kind, \['note'\]"),
        ({"text": 1}, "not an event of kind note: text: Input should be a valid string$"),
        ({"colour": "red"}, "not an event of kind note"),
    ],
)
def test_what_is_not_an_event_of_this_version_is_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_json(json.dumps({**json.loads(to_json(Note(stage="dpo", text="a"))), **changes}))
    with pytest.raises(ValueError, match="not an event"):
        from_json("[1]")


def test_of_progress_the_file_gets_the_first_the_last_and_one_a_second(tmp_path: Path) -> None:
    clock = Clock()
    with JsonlSink(tmp_path / EVENTS_NAME, clock) as sink:
        for done in range(1, 101):
            clock.now += 0.3
            sink.handle(step(done))
            sink.handle(Metrics(stage="sft", step=done, values={"loss": 1.0}))
        sink.handle(step(1, task="reference"))
    events = list(read_events(tmp_path / EVENTS_NAME))
    shown = [event.done for event in events if isinstance(event, Progress) and event.task == "train"]
    assert shown == [*range(1, 101, 4), 100]
    assert sum(isinstance(event, Progress) and event.task == "reference" for event in events) == 1
    assert [event.step for event in events if isinstance(event, Metrics)] == list(range(1, 101))


@pytest.mark.parametrize("rest", ["", '{"version": 1, "ki', "x" * 200_000])
@pytest.mark.parametrize("before", [0, 2])
def test_a_line_cut_by_a_kill_is_not_continued(tmp_path: Path, before: int, rest: str) -> None:
    path = tmp_path / EVENTS_NAME
    notes: list[Event] = [Note(stage="a", text=str(number)) for number in range(before)]
    path.write_text("".join(to_json(note) + "\n" for note in notes) + rest)
    assert list(read_events(path)) == notes  # while it is being written
    with JsonlSink(path) as sink:
        sink.handle(EXAMPLES[0])
    assert list(read_events(path)) == [*notes, EXAMPLES[0]]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_NAME
    path.write_text(to_json(EXAMPLES[0]) + "\nnot json\n")
    with pytest.raises(ValueError, match=rf"{EVENTS_NAME}:2: "):
        list(read_events(path))


@pytest.mark.parametrize("cut", [True, False])
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    write = os.write

    def full(file: int, content: bytes) -> int:
        if not cut:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:20])

    with JsonlSink(tmp_path / EVENTS_NAME) as sink:
        sink.handle(EXAMPLES[0])
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(EnvironmentProblem, match="the disk is full"):
            sink.handle(EXAMPLES[1])
        monkeypatch.undo()
        sink.handle(EXAMPLES[2])
    assert list(read_events(tmp_path / EVENTS_NAME)) == [EXAMPLES[0], EXAMPLES[2]]


def planned(**fingerprints: str) -> RunPlanned:
    stages = (
        StagePlan(name=name, stage_type="dpo", status="run", reason="", fingerprint=fingerprint)
        for name, fingerprint in fingerprints.items()
    )
    return RunPlanned(recipe="r", stages=tuple(stages))


def curve(stage: str, steps: range, loss: float) -> list[Event]:
    return [Metrics(stage=stage, step=step, values={"loss": loss}) for step in steps]


def replayed(path: Path, events: list[Event]) -> dict[str, list[tuple[float, float]]]:
    path.write_text("".join(to_json(event) + "\n" for event in events))
    return {name: [(row["step"], row["loss"]) for row in rows] for name, rows in metrics_of(path).items()}


def test_steps_after_a_resume_replace_those_before_it(tmp_path: Path) -> None:
    before = [planned(a="1", b="2"), *curve("a", range(1, 6), 1.0)]
    after = [planned(a="1", b="2"), *curve("a", range(3, 5), 2.0), *curve("b", range(1, 2), 3.0)]
    assert replayed(tmp_path / "e", [*before, *after]) == {"a": [(1, 1), (2, 1), (3, 2), (4, 2)], "b": [(1, 3)]}


def test_another_configuration_has_curves_of_its_own(tmp_path: Path) -> None:
    events = [planned(a="1"), *curve("a", range(1, 9), 1.0), planned(a="2"), *curve("a", range(1, 3), 2.0)]
    assert replayed(tmp_path / "e", events) == {"a": [(1, 2), (2, 2)]}
    # The first one again, which is cached now.
    assert replayed(tmp_path / "e", [*events, planned(a="1")])["a"] == [(step, 1) for step in range(1, 9)]
    assert replayed(tmp_path / "e", [*events, planned(other="3")]) == {}
    # Of a stage that no plan has, as in a damaged file.
    assert replayed(tmp_path / "e", [*events, *curve("b", range(2), 1.0)]) == {"a": [(1, 2), (2, 2)]}
