"""Jobs in this process or in another: the same events, errors and stops."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import launcher_work
import pytest

from align.errors import DataError, Interrupted, StageError
from align.runtime import launcher, supervise
from align.runtime.events import Event, Note, Saving
from align.runtime.job import Job
from align.runtime.launcher import Forked, InProcess, Launcher, Spawned, launcher_for, run_one
from align.runtime.signals import StopSignals
from align.runtime.supervise import StageBug

BOTH = pytest.mark.parametrize("where", [InProcess(), Spawned()], ids=["in-process", "spawned"])


def run(where: Launcher, work: Any, log: Path, *, on_event: Callable[[Event, StopSignals], None] = lambda *_: None) -> list[str]:
    """The texts of the notes that the job sent, and those of the launcher."""
    texts: list[str] = []
    stop = StopSignals()

    def emit(event: Event) -> None:
        if isinstance(event, Saving):
            return
        assert isinstance(event, Note)
        texts.append(event.text)
        on_event(event, stop)

    with stop.active():
        run_one(where, Job("job", work, log, {"ALIGN_TEST": "set"}), emit, stop)
    return texts


@BOTH
def test_events_arrive_and_the_environment_is_the_jobs_only(where: Launcher, tmp_path: Path) -> None:
    process, variable = run(where, launcher_work.note_process_and_variable, tmp_path / "log")
    assert (int(process) == os.getpid()) == isinstance(where, InProcess)
    assert variable == "set"
    assert "ALIGN_TEST" not in os.environ


@BOTH
def test_what_a_user_can_act_on_arrives_as_it_was_raised(where: Launcher, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(where, launcher_work.refuse, tmp_path / "log")
    assert (caught.value.message, caught.value.hint) == ("row 3", "Look at it.")


def test_a_bug_keeps_its_traceback_across_processes(tmp_path: Path) -> None:
    with pytest.raises(StageBug, match=r"job failed:\n(.|\n)*launcher_work.py(.|\n)*KeyError: 'a bug'"):
        run(Spawned(), launcher_work.fail, tmp_path / "log")


def test_a_bug_in_this_process_is_the_error_itself(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug"):
        run(InProcess(), launcher_work.fail, tmp_path / "log")


def test_a_job_that_dies_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"was killed by signal 9 \(SIGKILL\) .*\n  last words") as caught:
        run(Spawned(), launcher_work.die, tmp_path / "log")
    assert "memory" in (caught.value.hint or "")


def test_prints_go_to_the_log_or_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Spawned(), launcher_work.print_something, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "from the job\n"
    run(InProcess(), launcher_work.print_something, tmp_path / "log")
    assert capsys.readouterr() == ("", "from the job\n")


def jobs(log: Path, *works: Any) -> list[Job]:
    return [Job(work.__name__, work, log, {}) for work in works]


def test_jobs_side_by_side_end_together_with_the_first_that_fails(tmp_path: Path) -> None:
    texts: list[str] = []

    def note(event: Event) -> None:
        assert isinstance(event, Note)
        texts.append(event.text)

    work = jobs(tmp_path / "log", launcher_work.wait_for_stop, launcher_work.refuse)
    failures = Spawned().run(work, note, StopSignals())
    assert [(name, type(error)) for name, error in failures.items()] == [("refuse", DataError), ("wait_for_stop", Interrupted)]
    assert "stopping, as refuse failed; what is finished is being kept" in texts


def test_one_job_that_ends_leaves_the_others_alone(tmp_path: Path) -> None:
    work = jobs(tmp_path / "log", launcher_work.print_something, launcher_work.write_slowly)
    events: list[Event] = []
    assert Spawned().run(work, events.append, StopSignals()) == {}
    assert [event.text for event in events if isinstance(event, Note)] == ["written"]


def test_in_this_process_jobs_run_one_after_the_other_until_one_fails(tmp_path: Path) -> None:
    work = jobs(tmp_path / "log", launcher_work.print_something, launcher_work.refuse, launcher_work.die)
    failures = InProcess().run(work, lambda event: None, StopSignals())
    assert [(name, type(error)) for name, error in failures.items()] == [("refuse", DataError)]


def interrupt(event: Event, stop: StopSignals) -> None:
    if isinstance(event, Note) and event.text == "begun":
        os.kill(os.getpid(), signal.SIGINT)


@BOTH
def test_a_signal_asks_the_job_to_stop(where: Launcher, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="what is finished is kept"):
        run(where, launcher_work.wait_for_stop, tmp_path / "log", on_event=interrupt)


def interrupt_twice(event: Event, stop: StopSignals) -> None:
    if isinstance(event, Note) and event.text == "begun":
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


@BOTH
def test_a_second_signal_ends_a_job_that_does_not_stop(where: Launcher, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at once") as caught:
        run(where, launcher_work.never_stop, tmp_path / "log", on_event=interrupt_twice)
    assert caught.value.signal_number == signal.SIGTERM


def test_a_stop_waits_for_a_checkpoint_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace is far shorter than the writing; a job that has saved and does not stop is killed after it."""
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 1.0)
    texts: list[str] = []

    def note(event: Event, stop: StopSignals) -> None:
        assert isinstance(event, Note)
        texts.append(event.text)
        interrupt(event, stop)

    with pytest.raises(Interrupted, match="what is finished is kept"):
        run(Spawned(), launcher_work.save_slowly, tmp_path / "log", on_event=note)
    assert "written" in texts
    with pytest.raises(Interrupted, match="stopped at once"):
        run(Spawned(), launcher_work.hang_after_saving, tmp_path / "log", on_event=interrupt)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Spawned]]:
    """Makes a launcher as of a machine with a GPU, for so many jobs."""
    monkeypatch.setattr(launcher, "visible_gpus", lambda: ["0"])
    made: list[Spawned] = []

    def make(num_jobs: int, preload: str = "launcher_preload") -> Spawned:
        found = launcher_for(preload=preload, environment={"ALIGN_TEST": "set"}, num_jobs=num_jobs)
        assert isinstance(found, Spawned)
        made.append(found)
        return found

    yield make
    for one in made:
        one.close()


def notes_of(where: Launcher, log: Path, **options: Any) -> list[str]:
    events: list[Event] = []
    job = Job("job", launcher_work.note_preloaded, log, {}, **options)
    assert where.run([job], events.append, StopSignals()) == {}
    return [event.text for event in events if isinstance(event, Note)]


def test_a_gpu_machine_imports_while_the_stage_before_runs(spawned: Callable[..., Spawned], tmp_path: Path) -> None:
    """CPU twin of what a GPU machine does: each job's process was started, and imports, before its job is known."""
    where, before = spawned(3), {child.pid for child in multiprocessing.active_children()}
    for number in range(3):
        (spare,) = [child for child in multiprocessing.active_children() if child.name == "align-spare"]
        process, had_preloaded = notes_of(where, tmp_path / "log")
        assert (int(process), had_preloaded) == (spare.pid, "True"), number
    # None waits for a fourth job, which gets a process all the same.
    assert {child.pid for child in multiprocessing.active_children()} <= before
    assert notes_of(where, tmp_path / "log")[1] == "False"


def test_a_job_that_cannot_preload_leaves_the_spare_to_the_next(spawned: Callable[..., Spawned], tmp_path: Path) -> None:
    where = spawned(3)
    (spare,) = [child for child in multiprocessing.active_children() if child.name == "align-spare"]
    assert notes_of(where, tmp_path / "log", can_preload=False)[1] == "False"
    assert int(notes_of(where, tmp_path / "log")[0]) == spare.pid
    where.close()
    assert not [child for child in multiprocessing.active_children() if child.name == "align-spare"]


def test_a_spare_that_died_is_replaced(spawned: Callable[..., Spawned], tmp_path: Path) -> None:
    where = spawned(2)
    (spare,) = [child for child in multiprocessing.active_children() if child.name == "align-spare"]
    spare.kill()
    spare.join()
    assert notes_of(where, tmp_path / "log")[1] == "False"
    assert notes_of(where, tmp_path / "log")[1] == "True"


def test_a_pipe_reaches_a_job_in_a_process_that_waited(spawned: Callable[..., Spawned], tmp_path: Path) -> None:
    """As that of the engine that the stages of a run share."""
    ours, theirs = multiprocessing.Pipe()
    job = Job("job", partial(launcher_work.say_through, theirs), tmp_path / "log", {})
    assert spawned(1).run([job], lambda event: None, StopSignals()) == {}
    assert ours.poll(5)
    assert ours.recv() == "heard"


def test_one_place_decides_how_jobs_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "visible_gpus", list)
    monkeypatch.setattr(launcher.forkserver, "ensure_running", lambda: None)  # type: ignore[attr-defined]
    assert isinstance(launcher_for(preload="json", environment={}), Forked)
    assert isinstance(launcher_for(preload=None, environment={}), Spawned)
    assert isinstance(launcher_for(preload="json", environment={}, in_process=True), InProcess)
    monkeypatch.setattr(launcher, "visible_gpus", lambda: ["0"])
    assert isinstance(launcher_for(preload="json", environment={}), Spawned)
