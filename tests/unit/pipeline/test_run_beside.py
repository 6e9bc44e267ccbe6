"""Stages side by side in a run: they overlap, give the bytes that each gives when it is the only one left, and end together."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe
from align.config.machine_file import read_machine_settings
from align.errors import Interrupted, StageError
from align.pipeline import beside
from align.pipeline.run import run_recipe
from align.pipeline.run_result import RunResult
from align.runtime import launcher
from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import Event, Progress, StageFailed, StageFinished, StageStarted
from align.runtime.job import Job
from align.runtime.signals import StopSignals
from align.runtime.supervise import RunningJob
from align.store.artifact import Entry, Manifest

NAMES = ("rs", "orpo")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where tests run with one thread, no stage has room beside another.
    monkeypatch.setattr(beside, "available_threads", lambda: 2)


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """Runs in which these two stages have no result."""
    out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
    forget(out)
    return out


def forget(out: Path) -> None:
    for name in NAMES:
        link = out / "tiny" / "stages" / name
        if link.exists():
            shutil.rmtree(link.resolve())
    (out / "tiny" / EVENTS_NAME).unlink(missing_ok=True)


def run(project: Path, out: Path, **options: Any) -> RunResult:
    machine = read_machine_settings({"schedule": {"at_once": 2}}, project, {})
    return run_recipe(load_recipe(project), out, machine_file=machine, **options)


def manifest(out: Path, stage: str) -> Manifest:
    found = Entry(out / "tiny" / "stages" / stage).read_manifest()
    assert found is not None
    return found


def test_two_trainings_overlap_and_have_the_bytes_of_each_alone(project: Path, out: Path) -> None:
    result = run(project, out)
    events = list(read_events(out / "tiny" / EVENTS_NAME))
    started = {event.stage: event for event in events if isinstance(event, StageStarted)}
    finished = {event.stage: event for event in events if isinstance(event, StageFinished)}
    assert set(NAMES) <= finished.keys()
    assert max(started[name].time for name in NAMES) < min(finished[name].time for name in NAMES)
    assert (started["rs"].beside, started["orpo"].beside) == (("orpo",), ("rs",))
    assert result.overlap_seconds > 0
    together = {name: manifest(out, name) for name in NAMES}
    assert all(found.machine == {"parts": 2} for found in together.values())
    assert "====" in (out / "tiny" / "run-orpo.log").read_text()
    assert "what it prints is in run-orpo.log" in (out / "tiny" / "run.log").read_text()
    forget(out)
    for name in NAMES:
        run(project, out, only=name)
    for name, found in together.items():
        alone = manifest(out, name)
        assert alone.machine == {"parts": 2}
        weights = {file: entry.sha256 for file, entry in found.files.items() if file.endswith(".safetensors")}
        assert weights
        assert {file: alone.files[file].sha256 for file in weights} == weights


def test_one_that_dies_stops_the_other_and_its_error_is_the_runs(
    project: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: dict[str, RunningJob] = {}
    started = launcher._started

    def remember(context: Any, job: Job, stop: StopSignals) -> RunningJob:
        processes[job.name] = started(context, job, stop)
        return processes[job.name]

    class Kill:
        def handle(self, event: Event) -> None:
            if isinstance(event, Progress) and event.stage == "orpo" and (process := processes.pop("orpo", None)):
                process.process.kill()

    monkeypatch.setattr(launcher, "_started", remember)
    machine = read_machine_settings({"schedule": {"at_once": 2}}, project, {})
    recipe = load_recipe(project, ["stages.rs.num_epochs=200"])
    with pytest.raises(StageError, match=r"orpo: its process was killed by signal 9"):
        run_recipe(recipe, out, machine_file=machine, sinks=[Kill()])
    failed = [event for event in read_events(out / "tiny" / EVENTS_NAME) if isinstance(event, StageFailed)]
    assert [(event.stage, event.exit_code) for event in failed] == [("rs", 143), ("orpo", 5)]
    assert not any(one.process.is_alive() for one in processes.values())


def test_a_signal_stops_both(project: Path, out: Path) -> None:
    class Stop:
        def handle(self, event: Event) -> None:
            if isinstance(event, StageStarted) and event.stage == "orpo":
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        run(project, out, sinks=[Stop()])
    assert caught.value.exit_code == 130
    failed = [event for event in read_events(out / "tiny" / EVENTS_NAME) if isinstance(event, StageFailed)]
    assert {(event.stage, event.exit_code) for event in failed} == {(name, 130) for name in NAMES}
