"""Killed at any moment, then the same command: it goes on, and every weight and text is that of an undisturbed run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jsonschema
import pytest

from align import load_recipe, run_recipe
from align.cli.main import main
from align.errors import Interrupted, StageError
from align.models.folder import ModelFolder
from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import Emit, Event, Metrics, Progress, Quarantined, RunFinished, StageFailed, StageStarted
from align.runtime.job import Job
from align.runtime.launcher import InProcess
from align.runtime.process import start as start_process
from align.runtime.replay import metrics_of
from align.runtime.signals import StopSignals
from align.store.artifact import METRICS_NAME, Manifest
from align.testing import Recorder
from align.testing.damage import overwrite

pytestmark = pytest.mark.slow

SCHEMAS = Path(__file__).resolve().parents[2] / "data_schemas"
ALIGN = [sys.executable, "-m", "align.cli.main"]


def content(run: Path) -> dict[str, str]:
    """sha256 of every weight, tokenizer and row file of a run, by stage and path."""
    hashes = {}
    for stage in sorted((run / "stages").iterdir()):
        manifest = Manifest.model_validate_json((stage / "manifest.json").read_bytes())
        for name, entry in manifest.files.items():
            # Curves are averages over the steps since the last log line, which an interruption may split.
            if name.endswith((".safetensors", ".jsonl")) and name != "metrics.jsonl":
                hashes[f"{stage.name}/{name}"] = entry.sha256
    return hashes


def assert_events_have_the_curves(run: Path) -> None:
    """What the events of all attempts together say of every training is its metrics.jsonl, and each of them is valid."""
    paths = (run / "stages").glob(f"*/{METRICS_NAME}")
    curves = {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}
    assert metrics_of(run / EVENTS_NAME) == curves
    schema = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "events.schema.json").read_text()))
    for line in (run / EVENTS_NAME).read_text().splitlines():
        schema.validate(json.loads(line))


def stage_process() -> int:
    """The process that runs the stage: the newest that this process spawned, or that its fork server forked."""
    own = str(os.getpid())
    servers = children_of(own, "multiprocessing.forkserver")
    # Where there is a GPU, stages are spawned.
    return max(children_of(own, "multiprocessing.spawn") + (children_of(",".join(map(str, servers))) if servers else []))


def children_of(parents: str, pattern: str = "") -> list[int]:
    found = subprocess.run(["pgrep", "-P", parents, "-f", pattern], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


@pytest.fixture
def run_before(finished_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder of runs as the undisturbed run left it just before a stage."""

    def copied_until(stage: str) -> Path:
        out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
        run, lines = out / "tiny", (finished_run / EVENTS_NAME).read_text().splitlines(keepends=True)
        stages = [planned["name"] for planned in json.loads(lines[0])["stages"]]
        left_out = stages[stages.index(stage) :]
        for name in left_out:
            (run / "stages" / name).unlink()
        for published in ("results.json", "report.html"):
            (run / published).unlink()
        kept = {link.resolve() for link in [*(run / "stages").iterdir(), *(run / "inputs").iterdir()]}
        # With the entries of the stages goes what several could use: a DPO computes its reference itself.
        for entry in (out / ".store").iterdir():
            if entry.is_dir() and entry not in kept:
                shutil.rmtree(entry)
        started = [(event["kind"], event.get("stage")) == ("stage_started", stage) for event in map(json.loads, lines)]
        (run / EVENTS_NAME).write_text("".join(lines[: started.index(True)]))
        return out

    return copied_until


@pytest.mark.parametrize(("stage", "moment"), [("sft", 3), ("sampled", 1), ("dpo", 1), ("ppo", 2)])
def test_a_killed_worker_is_an_error_and_the_next_run_goes_on(
    project: Path, run_before: Callable[[str], Path], finished_run: Path, stage: str, moment: int
) -> None:
    recipe, out = load_recipe(project / "recipe.yaml"), run_before(stage)

    class KillAtMoment:
        def handle(self, event: Event) -> None:
            if isinstance(event, Progress) and (event.stage, event.done) == (stage, moment) and event.task != "reference":
                os.kill(stage_process(), signal.SIGKILL)

    with pytest.raises(StageError, match=rf"{stage}: its process was killed by signal 9 \(SIGKILL\)") as caught:
        run_recipe(recipe, out, sinks=[KillAtMoment()], until=stage)
    assert "Run the same command again" in str(caught.value)
    assert len(caught.value.render().splitlines()) <= 15

    run = run_recipe(recipe, out, until=stage).folder
    expected = content(finished_run)
    assert content(run) == {name: expected[name] for name in content(run)}
    assert_events_have_the_curves(run)
    failed = [event for event in read_events(run / EVENTS_NAME) if isinstance(event, (StageFailed, RunFinished))]
    assert [(type(event), event.exit_code) for event in failed] == [(StageFailed, 5), (RunFinished, 5), (RunFinished, 0)]


def start(project: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [*ALIGN, "run", str(project / "recipe.yaml"), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def alive_in_session(session: int) -> list[str]:
    """Processes of a session that have not ended."""
    listing = subprocess.run(["ps", "-o", "pid=,stat=,args=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [line for line in listing.stdout.splitlines() if line.split()[1][0] != "Z"]


def wait_until_none_is_left(session: int, *, seconds: float = 5) -> list[str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and alive_in_session(session):
        time.sleep(0.1)
    return alive_in_session(session)


def work_in(events: Path) -> int:
    """How often a stage has reported progress or metrics, in all attempts together. A whole run has some 80."""
    return sum(isinstance(event, (Metrics, Progress)) for event in read_events(events)) if events.exists() else 0


class RunHere:
    """A run whose stages are in the run's own process, forked from a server that has imported the trainers already."""

    def __init__(self, project: Path, out: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        arguments = {"recipe": str(project), "out": str(out), "in_process": True, "progress": False}
        self._process = context.Process(target=run_recipe, kwargs=arguments)
        start_process(self._process)
        self.poll, self.kill = lambda: self._process.exitcode, self._process.kill

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def test_a_runner_killed_at_random_moments_ends_with_the_same_bytes(project: Path, tmp_path: Path, finished_run: Path) -> None:
    """Killed once beside its stage, twice with its stage in the same process."""
    out, chance = tmp_path / "runs", random.Random(11)
    events = out / "tiny" / EVENTS_NAME
    for attempt in range(3):
        # Counted in work, not in seconds: on any machine every attempt gets somewhere, and none to the end.
        enough = work_in(events) + chance.randint(2, 20)
        runner = RunHere(project, out) if attempt else start(project, out)
        while work_in(events) < enough and runner.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.3))  # and not always right after an event
        runner.kill()
        assert runner.wait() == -signal.SIGKILL
        if isinstance(runner, subprocess.Popen):
            runner.communicate()
            assert wait_until_none_is_left(runner.pid) == []
    run_recipe(load_recipe(project / "recipe.yaml"), out)
    assert content(out / "tiny") == content(finished_run)
    assert_events_have_the_curves(out / "tiny")


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_no_orphan_and_a_resumable_run(
    project: Path, tmp_path: Path, finished_run: Path, signal_number: int, code: int
) -> None:
    out = tmp_path / "runs"
    process = start(project, out)
    assert process.stderr is not None
    seen = ""
    while "sft: done" not in seen and process.poll() is None:
        seen += process.stderr.readline()
    os.killpg(process.pid, signal_number)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, seen + errors
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    assert wait_until_none_is_left(process.pid) == []
    assert (out / "tiny" / "stages" / "sft" / "manifest.json").exists()
    run = run_recipe(load_recipe(project / "recipe.yaml"), out, until="reward").folder
    expected = content(finished_run)
    assert content(run) == {name: expected[name] for name in content(run)}


def test_a_run_in_one_process_stops_and_goes_on_to_the_same_bytes(
    project: Path, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A debugger's and a profiler's way: no other process, and nothing else is different."""
    out, before = tmp_path / "runs", children_of(str(os.getpid()))
    command = ["run", str(project / "recipe.yaml"), "--out", str(out), "--in-process"]

    def run_and_stop(self: InProcess, jobs: Sequence[Job], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
        def stopping(event: Event) -> None:
            assert set(children_of(str(os.getpid()))) <= set(before)
            if isinstance(event, Progress) and event.stage == "reward" and not stop.received:
                os.kill(os.getpid(), signal.SIGINT)
            emit(event)

        return run(self, jobs, stopping, stop)

    run = InProcess.run
    with monkeypatch.context() as patched:
        patched.setattr(InProcess, "run", run_and_stop)
        assert main(command) == 130
    errors = capsys.readouterr().err
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    assert (out / "tiny" / "stages" / "sft" / "manifest.json").exists()
    assert not (out / "tiny" / "stages" / "reward").exists()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["models"].keys() == {"sft", "rs", "dpo"}
    assert content(out / "tiny") == content(finished_run)
    assert_events_have_the_curves(out / "tiny")


def test_damage_is_quarantined_and_made_again(project: Path, run_before: Callable[[str], Path], finished_run: Path) -> None:
    recipe, out = load_recipe(project / "recipe.yaml"), run_before("scored")
    rows = (out / "tiny" / "stages" / "sampled").resolve() / "rows.jsonl"
    overwrite(rows, rows.read_bytes().replace(b"p3", b"p4"))
    recorder = Recorder()
    run = run_recipe(recipe, out, until="sampled", sinks=[recorder]).folder
    (quarantined,) = recorder.of(Quarantined)
    assert quarantined.stage == "sampled"
    assert "rows.jsonl does not have the content" in quarantined.problem
    assert Path(quarantined.path).is_dir()
    expected = content(finished_run)
    assert content(run) == {name: expected[name] for name in content(run)}


def test_a_second_run_waits_for_the_first_and_says_for_whom(project: Path, tmp_path: Path) -> None:
    """The first is here, in the midst of its work, until the second has ended."""
    out, said = tmp_path / "runs", []

    class Second:
        def handle(self, event: Event) -> None:
            if isinstance(event, StageStarted):
                second = start(project, out)
                assert second.stderr is not None
                line = ""
                while "waiting" not in line and second.poll() is None:
                    line = second.stderr.readline()
                os.killpg(second.pid, signal.SIGINT)
                second.communicate(timeout=60)
                said.append((line, second.returncode))
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(project / "recipe.yaml"), out, sinks=[Second()])
    ((line, code),) = said
    assert f"process {os.getpid()}" in line
    assert code == 130


def test_a_stop_between_shards_is_not_an_error_of_the_stage(project: Path, tmp_path: Path) -> None:
    """In one process, so that the request can come at an exact moment."""
    from align.engines.holder import EngineHolder
    from align.engines.shards import sample
    from align.engines.task import SamplingTask
    from align.records import Message, Prompt
    from align.stages.generate import Config

    config = Config.model_validate(
        {
            "model": "m",
            "prompts": "p",
            "engine": "transformers",
            "shard_prompts": 1,
            "max_completion_tokens": 2,
            "num_candidates": 1,
        }
    )
    prompts = [Prompt(id=str(i), prompt=[Message(role="user", content="a")]) for i in range(3)]
    task = SamplingTask(ModelFolder(project / "base"), prompts, [[5, 6], [7], [8, 9]], (2,), config, seed=1)
    done: list[int] = []
    with pytest.raises(Interrupted) as caught:
        sample(
            task,
            tmp_path / "shards",
            holder=EngineHolder(config),
            stop_requested=lambda: signal.SIGTERM if done[-1:] == [1] else None,
            report=lambda finished, total: done.append(finished),
        )
    assert caught.value.exit_code == 143
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.jsonl")) == ["shard-00000.jsonl"]
