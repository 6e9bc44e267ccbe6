"""Run a recipe: make the plan, run what is not there, one process per stage, and publish the comparison."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from align.config.judge import judge_environment
from align.config.recipe import Recipe
from align.engines.open import resolve_engine
from align.errors import EXIT_BUG, EXIT_OK, AlignError, EnvironmentProblem, Interrupted, StageError
from align.pipeline import worker
from align.pipeline.inputs import import_inputs
from align.pipeline.plan import LINKS_NAME, Plan, PlannedStage, make_plan
from align.runtime.event_file import EVENTS_NAME, JsonlSink
from align.runtime.events import (
    Event,
    EventSink,
    Note,
    RunFinished,
    RunPlanned,
    StageCached,
    StageFailed,
    StageFinished,
    StagePlan,
    StageStarted,
    Waiting,
)
from align.stage import StageConfig
from align.stages.registry import STAGES
from align.store.artifact import Artifact
from align.store.atomic import fsync_folder, write_bytes, write_json
from align.store.lock import hold

LOG_NAME = "run.log"
INPUT_LINKS_NAME = "inputs"
RECIPE_NAME = "recipe.json"
PUBLISHED = ("results.json", "report.html")
LOG_TAIL_LINES = 8
POLL_SECONDS = 0.2
# How long a stage may take to write its checkpoint after it was asked to stop.
GRACE_SECONDS = 60.0


class StageBug(RuntimeError):
    """An error in align itself, in a worker process; carries that process's traceback."""

    exit_code = EXIT_BUG


@dataclass
class RunResult:
    """What a run left behind, gathered from its events."""

    folder: Path
    stages: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] | None = None

    def handle(self, event: Event) -> None:
        if isinstance(event, RunPlanned):
            self.stages = [{"name": stage.name, "status": stage.status, "seconds": None} for stage in event.stages]
        elif isinstance(event, (StageCached, StageFinished)):
            next(stage for stage in self.stages if stage["name"] == event.stage)["seconds"] = event.seconds

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "stages": self.stages, "results": self.results}


class _Signals:
    """While active, SIGINT and SIGTERM are remembered instead of raised, so that a stage can finish its checkpoint."""

    def __init__(self) -> None:
        self.received: list[int] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @staticmethod
    @contextmanager
    def ignored(number: int) -> Iterator[None]:
        """Processes started inside inherit that `number` is ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(number, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(number, before)

    def _remember(self, number: int, _: Any) -> None:
        self.received.append(number)

    def check(self) -> None:
        if self.received:
            raise Interrupted("Stopped between two stages.", signal_number=self.received[0])


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    store: Path | None = None,
    sinks: Sequence[EventSink] = (),
    command: list[str] | None = None,
) -> RunResult:
    """Run every stage whose result is not in the store, and publish `results.json` and `report.html` beside the run.

    Args:
        recipe: what to run.
        out: folder of all runs; this one goes to `out/<recipe name>`, its artifacts to `out/.store`.
        only, start, until, store: see `make_plan`.
        sinks: take every event, in this thread; `events.jsonl` in the run's folder does too.
        command: what the user typed, written into the comparison.
    Raises:
        AlignError: see `align.errors` for what each kind means.
        StageBug: if a stage failed for a reason that is ours.
    """
    signals = _Signals()
    with signals.active():
        plan = make_plan(recipe, out, only=only, start=start, until=until, store=store)
        plan.run_folder.mkdir(parents=True, exist_ok=True)
        waited: list[Waiting] = []

        def on_wait(holder: str) -> None:
            waited.append(Waiting(stage=recipe.name, holder=holder))
            for sink in sinks:
                sink.handle(waited[0])

        lock_path = plan.store.root / f"run-{recipe.name}.lock"
        with hold(lock_path, on_wait=on_wait, give_up=lambda: bool(signals.received)):
            signals.check()
            if waited:  # what the other run finished meanwhile need not be made again
                plan = make_plan(recipe, out, only=only, start=start, until=until, store=store)
            with JsonlSink(plan.run_folder / EVENTS_NAME) as file:
                return _Runner(plan, signals, [file, *sinks], command or []).run()


class _Runner:
    def __init__(self, plan: Plan, signals: _Signals, sinks: list[EventSink], command: list[str]) -> None:
        self._plan = plan
        self._signals = signals
        self._command = command
        self._log_path = plan.run_folder / LOG_NAME
        self._result = RunResult(plan.run_folder)
        self._sinks = [*sinks, self._result]

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink.handle(event)

    def run(self) -> RunResult:
        """Run what the plan says.

        Raises:
            See `run_recipe`.
        """
        try:
            self._emit(_planned(self._plan, self._command))
            self._run_stages()
        except BaseException as error:
            with contextlib.suppress(EnvironmentProblem):  # a full disk may be what ended the run
                self._emit(RunFinished(exit_code=getattr(error, "exit_code", EXIT_BUG), error=str(error)))
            raise
        self._emit(RunFinished(exit_code=EXIT_OK))
        return self._result

    def _run_stages(self) -> None:
        plan = self._plan
        resolved = {**plan.recipe.resolved(), "command": self._command}
        write_json(plan.run_folder / RECIPE_NAME, resolved)
        to_run = [stage for stage in plan.stages if stage.status == "run"]
        self._check_environment(to_run)
        context = self._start_server(to_run) if to_run else None
        artifacts = import_inputs(plan.inputs, plan.store, self._emit)
        for artifact in artifacts.values():
            self._link(INPUT_LINKS_NAME, artifact.name, artifact.path)
        for stage in plan.stages:
            self._signals.check()
            if stage.status == "skipped":
                continue
            if stage.status == "run":
                assert context is not None
                self._run_stage(context, stage, artifacts)
            artifacts[stage.name] = plan.store.load(stage.name, stage.entry)
            if stage.status == "cached":
                self._emit(StageCached(stage=stage.name, seconds=artifacts[stage.name].manifest.seconds))
            self._link(LINKS_NAME, stage.name, stage.entry.path)
        self._publish(artifacts)

    @staticmethod
    def _check_environment(to_run: list[PlannedStage]) -> None:
        for stage in to_run:
            engine = getattr(stage.node.config, "engine", None)
            if engine is not None:
                resolve_engine(engine)

    def _start_server(self, to_run: list[PlannedStage]) -> ForkServerContext | SpawnContext:
        """A process with the trainers imported, from which every stage's process is forked.

        It starts importing at once, while the inputs are read. Its environment is set around the start and put back after it.
        Stages that need no trainer are started without it: they would wait for imports that they do not use.
        """
        if not any(STAGES[stage.stage_type].needs_trainers for stage in to_run):
            return multiprocessing.get_context("spawn")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(worker.PRELOAD)
        before = {key: os.environ.get(key) for key in worker.ENVIRONMENT}
        os.environ.update(worker.ENVIRONMENT)
        try:
            # A terminal sends Ctrl-C to the server too, and it would die of it in the middle of its imports.
            with self._signals.ignored(signal.SIGINT):
                forkserver.ensure_running()
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
        return context

    def _run_stage(self, context: ForkServerContext | SpawnContext, stage: PlannedStage, artifacts: dict[str, Artifact]) -> None:
        assert isinstance(stage.node.config, StageConfig)
        self._emit(StageStarted(stage=stage.name, reason=stage.reason))
        with self._log_path.open("a", encoding="utf-8") as log:
            log.write(f"\n===== {time.strftime('%Y-%m-%d %H:%M:%S')} {stage.name} ({stage.entry.path.name}): {stage.reason}\n")
        job = worker.Job(
            name=stage.name,
            stage_type=stage.stage_type,
            fingerprint=stage.fingerprint,
            config=stage.node.config,
            seed=stage.seed,
            entry=stage.entry,
            artifacts={name: artifacts[name] for name in artifacts if name in self._ancestors(stage)},
            inputs=stage.inputs,
            log_path=self._log_path.resolve(),
            recipe=self._plan.recipe.resolved(),
            command=self._command,
            environment=judge_environment(stage.node.config, os.environ),
        )
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=worker.work, args=(sender, job), name=f"align-{stage.name}")
        try:
            process.start()
        except (EOFError, ConnectionError) as error:  # the fork server is gone
            self._signals.check()
            hint = f"Run the same command again. Log: {self._log_path}"
            raise StageError(f"{stage.name}: the process that starts stages died", hint=hint) from error
        sender.close()
        try:
            self._supervise(process, receiver, stage)
        except BaseException as error:
            with contextlib.suppress(EnvironmentProblem):
                self._emit(StageFailed(stage=stage.name, error=str(error), exit_code=getattr(error, "exit_code", EXIT_BUG)))
            raise
        finally:
            if process.is_alive():
                process.kill()
            process.join()
            receiver.close()

    def _ancestors(self, stage: PlannedStage) -> set[str]:
        """Everything a stage was made from, directly or not."""
        inputs = {planned.name: planned.inputs for planned in self._plan.stages}
        found: set[str] = set()
        open_names = list(stage.inputs)
        while open_names:
            name = open_names.pop()
            if name not in found:
                found.add(name)
                open_names += inputs.get(name, {})
        return found

    def _supervise(self, process: ForkServerProcess | SpawnProcess, receiver: Any, stage: PlannedStage) -> None:
        """Pass events on until the stage is committed; turn signals into a request to stop, and death into an error."""
        asked_at: float | None = None
        while True:
            ready = wait([receiver, process.sentinel], timeout=POLL_SECONDS)
            if receiver in ready:
                try:
                    message: Event | worker.Failure | None = receiver.recv()
                except EOFError:
                    message = None
                if isinstance(message, worker.Failure):
                    raise self._error(message, stage)
                if message is not None:
                    self._emit(message)
                    if isinstance(message, StageFinished):
                        return
                    continue
            if process.sentinel in ready:
                process.join()
                raise self._death(process, stage)
            if self._signals.received and asked_at is None:
                asked_at = time.monotonic()
                self._emit(Note(stage=stage.name, text="stopping; what is finished is being kept"))
                process.terminate()
            waited_too_long = asked_at is not None and time.monotonic() - asked_at > GRACE_SECONDS
            if len(self._signals.received) > 1 or waited_too_long:
                process.kill()

    def _error(self, failure: worker.Failure, stage: PlannedStage) -> Exception:
        """What the run ends with, because a stage ended like this."""
        error = failure.error
        if isinstance(error, Interrupted) and self._signals.received:
            return Interrupted(f"{stage.name}: {error.message}", signal_number=self._signals.received[0])
        return error or StageBug(f"{stage.name} failed:\n{failure.traceback}")

    def _death(self, process: ForkServerProcess | SpawnProcess, stage: PlannedStage) -> AlignError:
        if self._signals.received:
            number = self._signals.received[0]
            return Interrupted(f"{stage.name}: stopped at once; it goes on from its last checkpoint.", signal_number=number)
        code = process.exitcode or 0
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        tail = "\n".join(f"  {line}" for line in _last_lines(self._log_path))
        memory = " Signal 9 often means that the machine ran out of memory." if code == -signal.SIGKILL else ""
        return StageError(
            f"{stage.name}: its process {how} before it was done. The log ends with:\n{tail}",
            hint=f"Run the same command again to go on from here.{memory} Log: {self._log_path}",
        )

    def _link(self, folder_name: str, name: str, path: Path) -> None:
        """Point `<run>/<folder_name>/<name>` at what is in the store, replacing an older link in one step."""
        folder = self._plan.run_folder / folder_name
        folder.mkdir(exist_ok=True)
        link, temporary = folder / name, folder / f".{name}.new"
        target = os.path.relpath(path, folder)
        if link.is_symlink() and os.readlink(link) == target:
            return
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
        fsync_folder(folder)

    def _publish(self, artifacts: dict[str, Artifact]) -> None:
        """Copy the files of the last comparison to where a person looks for them."""
        comparisons = [artifacts[stage.name] for stage in self._plan.stages if stage.status != "skipped"]
        comparisons = [artifact for artifact in comparisons if artifact.kind == "comparison"]
        if not comparisons:
            return
        for name in PUBLISHED:
            source, target = comparisons[-1].path / name, self._plan.run_folder / name
            if not target.exists() or target.read_bytes() != source.read_bytes():
                write_bytes(target, source.read_bytes())
        self._result.results = json.loads((self._plan.run_folder / PUBLISHED[0]).read_text())


def _planned(plan: Plan, command: list[str]) -> RunPlanned:
    stages = (
        StagePlan(
            name=stage.name,
            stage_type=stage.stage_type,
            status=stage.status,
            reason=stage.reason,
            fingerprint=stage.fingerprint,
        )
        for stage in plan.stages
    )
    return RunPlanned(recipe=plan.recipe.name, command=tuple(command), stages=tuple(stages))


def _last_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes()[-8192:].decode(errors="replace")
    except OSError:
        return []
    width = shutil.get_terminal_size((120, 24)).columns - 4
    return [line[:width] for line in text.splitlines() if line.strip()][-LOG_TAIL_LINES:]
