"""Run a recipe: make the plan, run the stages that have no result, group by group, and publish the comparison."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from align.config.recipe import Recipe
from align.engines.open import resolve_engine
from align.errors import EXIT_BUG, EXIT_OK, AlignError, EnvironmentProblem, Interrupted
from align.pipeline.beside import Group, groups_in_order, groups_of, shares_of
from align.pipeline.checks.finding import Finding
from align.pipeline.checks.machine import check_disk, check_memory
from align.pipeline.checks.plan import checked_plan
from align.pipeline.checks.spread import refuse_in_process, refuse_missing_nodes
from align.pipeline.estimate.duration import DurationEstimator
from align.pipeline.estimate.machine import read_machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.estimate.rates import unusual_rates
from align.pipeline.estimate.spread_view import workers_of
from align.pipeline.inputs import import_inputs
from align.pipeline.jobs import LOG_NAME, JobMaker
from align.pipeline.owner import write_owner
from align.pipeline.plan import LINKS_NAME, Plan, PlannedStage, make_plan
from align.pipeline.read_inputs import AGAIN
from align.pipeline.run_result import RunResult
from align.pipeline.worker import PRELOAD_LOG_VARIABLE, job_environment
from align.runtime.device import device_line, refuse_unusable_gpu
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
from align.runtime.job import Job
from align.runtime.launcher import Launcher, launcher_for
from align.runtime.plain_file import read_small_file
from align.runtime.share import Share
from align.runtime.signals import StopSignals
from align.runtime.supervise import AT_ONCE
from align.stages.registry import STAGES
from align.store.artifact import Artifact, Entry
from align.store.atomic import fsync_folder, make_way, write_bytes
from align.store.lock import hold
from align.system_errors import explained, require_addresses, system_problem

INPUT_LINKS_NAME = "inputs"
PUBLISHED = ("results.json", "report.html")
EARLIER_RUN = "an earlier run"


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    sinks: Sequence[EventSink] = (),
    command: list[str] | None = None,
    in_process: bool = False,
    quick: bool = False,
    **choice: Any,
) -> RunResult:
    """Run every stage whose result is not in the store, and publish `results.json` and `report.html` beside the run.

    Args:
        recipe: what to run.
        out: folder of all runs; this one goes to `out/<recipe name>`, its artifacts to `out/.store`.
        sinks: take every event, in this thread; `events.jsonl` in the run's folder does too.
        command: what the user typed, written into the comparison.
        in_process: run the stages in this process, where a debugger or a profiler sees them; what they print goes to stderr.
        quick: start without looking into rows and models first; see `checked_plan`.
        choice: of stages, of the store and of the machine file; see `make_plan`.
    Raises:
        AlignError: see `align.errors` for what each kind means.
        StageBug: if a stage failed for a reason that is ours; in this process the error itself.
    """
    began, signals = time.monotonic(), StopSignals()
    with signals.active(), explained(out):
        plan, findings = checked_plan(recipe, out, quick=quick, **choice)
        if _is_read_only(plan):
            return _Runner(plan, findings, signals, [*sinks], command or [], in_process, began, writes=False).run()
        plan.run_folder.mkdir(parents=True, exist_ok=True)
        waited: list[Waiting] = []

        def on_wait(holder: str) -> None:
            waited.append(Waiting(stage=recipe.name, holder=holder))
            for sink in sinks:
                sink.handle(waited[0])

        lock_path = plan.store.root / f"run-{recipe.name}.lock"
        # One run of a recipe at a time: two would write the same links, log and events.
        with hold(lock_path, on_wait=on_wait, give_up=lambda: bool(signals.received)):
            _check(signals)
            # At a signal `hold` gives up and returns without the lock, hence the check.
            if waited:  # the other run may have finished stages meanwhile
                plan = make_plan(recipe, out, **choice)
            for name in (EVENTS_NAME, LOG_NAME):
                make_way(plan.run_folder / name)
            with JsonlSink(plan.run_folder / EVENTS_NAME) as file:
                return _Runner(plan, findings, signals, [file, *sinks], command or [], in_process, began).run()


class _Runner:
    def __init__(
        self,
        plan: Plan,
        findings: Sequence[Finding],
        signals: StopSignals,
        sinks: list[EventSink],
        command: list[str],
        in_process: bool,
        began: float,
        *,
        writes: bool = True,
    ) -> None:
        self._plan = plan
        self._findings = findings
        self._signals = signals
        self._command = command
        self._in_process = in_process
        self._began = began
        self._writes = writes
        """Whether the folder of the run can be written to. Where it cannot, nothing is left to run."""
        self._result = RunResult(plan.run_folder)
        self._durations = DurationEstimator(plan)
        self._groups: tuple[Group, ...] = groups_in_order(plan)
        self._done: set[str] = set()
        """Names of the stages whose results are there."""
        self._launcher: Launcher | None = None
        self._jobs = JobMaker(plan, self._emit, command, in_process=in_process)
        self._sinks = [*sinks, self._result]

    def _emit(self, event: Event) -> None:
        if isinstance(event, (StageFinished, StageCached)):
            self._done.add(event.stage)
        for sink in self._sinks:
            sink.handle(event)

    def run(self) -> RunResult:
        """Run what the plan says.

        Raises:
            See `run_recipe`.
        """
        try:
            self._emit(_planned(self._plan, self._command))
            try:
                if self._writes:
                    write_owner(self._plan.recipe, self._plan.run_folder, self._command)
                self._run_stages()
            finally:
                self._jobs.shared_engine.end()
                if self._launcher is not None:
                    self._launcher.close()
        except BaseException as caught:
            error = self._explained(caught)
            with contextlib.suppress(EnvironmentProblem):  # a full disk may be what ended the run
                self._emit(
                    RunFinished(exit_code=getattr(error, "exit_code", EXIT_BUG), error=str(error), seconds=self._seconds())
                )
            if error is caught:
                raise
            raise error from caught
        self._emit(RunFinished(exit_code=EXIT_OK, seconds=self._seconds()))
        return self._result

    def _explained(self, error: BaseException) -> BaseException:
        """What the user should see in place of an error of this process."""
        if not isinstance(error, AlignError) and len(self._signals.received) > 1:
            found: AlignError | None = Interrupted(AT_ONCE, signal_number=self._signals.received[0])  # in the middle of anything
        else:
            found = system_problem(error, self._plan.run_folder)
        if found is None:
            return error
        found.__cause__ = error
        return found

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _run_stages(self) -> None:
        plan = self._plan
        to_run = [stage for stage in plan.stages if stage.status == "run"]
        if self._in_process:
            refuse_in_process(plan)
        self._check_environment(to_run)
        if not self._in_process:
            refuse_missing_nodes(self._plan, to_run)
        # Here and not where the recipe is read: what is usual depends on the model's size.
        for name, sentence in unusual_rates(plan):
            self._emit(Note(stage=name, text=sentence))
        for finding in [*self._findings, *self._check_room(to_run)]:
            if finding.action == "warn":  # what else is worth knowing, the run says as it comes to it
                self._emit(Note(stage=finding.name, text=finding.sentence))
        # Before the inputs are read: a fork server imports the trainers meanwhile.
        self._launcher = self._new_launcher(to_run) if to_run else None
        artifacts = import_inputs(plan.inputs, plan.store, self._emit)
        for artifact in artifacts.values():
            self._link(INPUT_LINKS_NAME, artifact.name, artifact.path)
        for group in self._groups:
            _check(self._signals)
            own = []
            for stage in group.stages:
                # Two names for one result: the first one made it.
                twin = next((name for name, made in artifacts.items() if made.path == stage.entry.path), "")
                if stage.status == "cached" or twin:
                    source = twin or self._maker(stage)  # before this run links to it
                    self._take(stage, artifacts)
                    seconds = artifacts[stage.name].manifest.seconds
                    self._emit(StageCached(stage=stage.name, seconds=seconds, source=source))
                elif stage.status == "run":
                    own.append(stage)
            if own:
                self._run_group(own, group.shares, artifacts)
        self._publish(artifacts)

    def _take(self, stage: PlannedStage, artifacts: dict[str, Artifact]) -> None:
        """Note a stage's result, which is in the store, and link to it."""
        artifacts[stage.name] = self._plan.store.load(stage.name, stage.entry)
        self._link(LINKS_NAME, stage.name, stage.entry.path)

    def _check_room(self, to_run: list[PlannedStage]) -> list[Finding]:
        """Whether memory and disk are enough, by estimates."""
        if not to_run:
            return []
        machine, names = read_machine(self._plan.run_folder), {stage.name for stage in to_run}
        self._groups = groups_of(self._plan, machine)
        estimate = estimate_plan(self._plan, machine, shares_of(self._groups))
        order = [group.stages for group in self._groups]
        self._durations = DurationEstimator(self._plan, workers_of(self._plan, estimate), order)
        stages = [stage for stage in estimate.stages if stage.name in names]
        return [*check_memory(stages, estimate.machine), *check_disk(self._plan.recipe.name, estimate, names)]

    def _check_environment(self, to_run: list[PlannedStage]) -> None:
        if any(STAGES[stage.stage_type].needs_trainers for stage in to_run):
            require_addresses()
            refuse_unusable_gpu()
            if (line := device_line()) is not None:
                self._emit(Note(stage=self._plan.recipe.name, text=line))
        for stage in to_run:
            engine = getattr(stage.node.config, "engine", None)
            if engine is not None:
                resolve_engine(engine)

    def _new_launcher(self, to_run: list[PlannedStage]) -> Launcher:
        """A launcher for these stages; it imports the trainers in advance only if a stage needs them."""
        needs_trainers = any(STAGES[stage.stage_type].needs_trainers for stage in to_run)
        preload = "align.pipeline.preload" if needs_trainers else None
        environment = {**job_environment(os.environ), PRELOAD_LOG_VARIABLE: str(self._jobs.log.resolve())}
        return launcher_for(preload=preload, environment=environment, in_process=self._in_process, num_jobs=len(to_run))

    def _maker(self, stage: PlannedStage) -> str:
        """In words, the run that made a result before this one; empty where its folder is gone."""
        runs, path = self._plan.run_folder, stage.entry.path.resolve()
        if (runs / LINKS_NAME / stage.name).resolve() == path:
            return EARLIER_RUN
        links = [link for link in sorted(runs.parent.glob(f"*/{LINKS_NAME}/*")) if link.resolve() == path]
        for link in sorted(links, key=lambda link: link.name != stage.name):
            run = f"the run {link.parents[1].name}"
            return run if link.name == stage.name else f"{link.name} of {run}"
        return ""

    def _run_group(self, stages: list[PlannedStage], shares: Mapping[str, Share], artifacts: dict[str, Artifact]) -> None:
        """Run stages side by side, or one after the other where memory is not enough. They compute the same either way."""
        if len(stages) > 1 and not self._in_process and not self._jobs.fit_together(stages, artifacts):
            names = ", ".join(stage.name for stage in stages[1:])
            self._emit(Note(stage=stages[0].name, text=f"runs before {names}: memory is not enough for them side by side"))
            for stage in stages:
                self._run_group([stage], shares, artifacts)
            return
        assert self._launcher is not None
        jobs = [self._begin(stage, stages, shares[stage.name], artifacts) for stage in stages]
        try:
            failures = self._launcher.run(jobs, self._emit, self._signals)
        except BaseException as caught:  # of this process; the launcher has ended all jobs
            error = self._explained(caught)
            failures = {job.name: error for job in jobs if job.name not in self._done}
            if not failures:
                raise
        for stage in stages:
            if stage.name in self._done:
                self._take(stage, artifacts)
        if failures:
            self._fail(failures, {job.name: job.log for job in jobs})

    def _begin(self, stage: PlannedStage, group: Sequence[PlannedStage], share: Share, artifacts: Mapping[str, Artifact]) -> Job:
        """Report that a stage starts, and make its job."""
        ordered_at = time.monotonic()
        self._emit(
            StageStarted(
                stage=stage.name,
                reason=stage.reason,
                expected_seconds=self._durations.seconds(stage),
                later_seconds=self._durations.later_seconds(stage),
                beside=tuple(other.name for other in group if other is not stage),
            )
        )
        own = self._jobs.log_of(stage, share)
        elsewhere = f"; what it prints is in {own.name}" if own != self._jobs.log else ""
        title = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {stage.name} ({stage.entry.path.name}): {stage.reason}"
        for path, more in {own: "", self._jobs.log: elsewhere}.items():
            make_way(path)
            with path.open("a", encoding="utf-8") as log:
                log.write(f"\n===== {title}{more}\n")
        return self._jobs.job(stage, artifacts, share, ordered_at)

    def _fail(self, failures: Mapping[str, BaseException], logs: Mapping[str, Path]) -> NoReturn:
        """Report the stages that failed, and raise what the one that failed first raised."""
        self._jobs.shared_engine.end(at_once=True)
        for name, error in reversed(list(failures.items())):  # the one that ends the run comes last
            # A worker gets SIGTERM whatever the user sent; the exit code must be that of the user's signal.
            if isinstance(error, Interrupted) and (number := self._signals()) is not None:
                error = Interrupted(f"{name}: {error.message}", signal_number=number)
            with contextlib.suppress(EnvironmentProblem):
                code = getattr(error, "exit_code", EXIT_BUG)
                self._emit(StageFailed(stage=name, error=str(error), exit_code=code, log=str(logs[name])))
            last = error
        raise last

    def _link(self, folder_name: str, name: str, path: Path) -> None:
        """Link `<run>/<folder_name>/<name>` to an entry of the store; an older link is replaced atomically."""
        folder = self._plan.run_folder / folder_name
        folder.mkdir(exist_ok=True)
        link, temporary = folder / name, folder / f".{name}.new"
        # Relative, so that runs and store can be moved together.
        target = os.path.relpath(path, folder)
        if link.is_symlink() and os.readlink(link) == target:
            return
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
        fsync_folder(folder)

    def _publish(self, artifacts: dict[str, Artifact]) -> None:
        """Copy the files of the last comparison to the top of the run's folder, where users look for them."""
        made = [artifacts[stage.name] for stage in self._plan.stages if stage.status != "skipped"]
        comparisons = {artifact.name: artifact.path for artifact in made if artifact.kind == "comparison"}
        for name, path in comparisons.items():
            state, problem = Entry(path).verify()
            if state != "done":  # what the next plan finds too
                raise EnvironmentProblem(f"{name}: {path}: damaged: {problem}", hint=AGAIN)
        self._result.comparisons = {name: json.loads((path / PUBLISHED[0]).read_text()) for name, path in comparisons.items()}
        for name in PUBLISHED if comparisons else ():
            source, target = list(comparisons.values())[-1] / name, self._plan.run_folder / name
            make_way(target)
            content = source.read_bytes()
            # An unchanged file keeps its modification time.
            if not _holds(target, content):
                write_bytes(target, content)


def _holds(path: Path, content: bytes) -> bool:
    """Whether there is a file with this content, whatever else somebody may have put there."""
    try:
        return not path.is_symlink() and read_small_file(path, most_bytes=len(content)) == content
    except OSError:
        return False


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


def _is_read_only(plan: Plan) -> bool:
    """Whether everything is done already, in a folder that only lets itself be read."""
    folder = plan.run_folder
    return folder.is_dir() and not os.access(folder, os.W_OK) and not any(stage.status == "run" for stage in plan.stages)


def _check(signals: StopSignals) -> None:
    if (number := signals()) is not None:
        raise Interrupted("Stopped between two stages.", signal_number=number)
