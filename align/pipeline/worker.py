"""Runs one stage, in whichever process: works in the stage's store entry under the entry's lock, and commits the result."""

from __future__ import annotations

import math
import os
import platform
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from align.config.inputs import ADAPTER_KINDS
from align.errors import AlignError, EnvironmentProblem, Interrupted, StageError
from align.metric import not_finite
from align.models.finite import BROKEN_NUMBERS, MAX_NAMED
from align.models.folder import ModelFolder
from align.pipeline.read_inputs import DamagedInputs, verify_inputs
from align.runtime.context import MemoryChoice
from align.runtime.device import out_of_memory, peak_gpu_bytes
from align.runtime.events import Emit, Quarantined, StageCached, StageFinished, Waiting
from align.runtime.plain_file import read_small_file
from align.runtime.pool import LOCAL, Pool
from align.runtime.profile import Phase, Profile, profiled
from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.share import WHOLE, Share
from align.runtime.spread import ALONE, Spread
from align.runtime.temporary import temporary_environment
from align.runtime.threads import thread_environment
from align.stage import StageConfig, StageContext, StageOutcome
from align.stages.registry import STAGES
from align.store.artifact import MODEL_FOLDER, Artifact, Entry, Manifest
from align.store.kept import versions_of
from align.store.lock import hold
from align.system_errors import require_addresses, system_problem

# Nothing leaves the machine unless asked: models were fetched, if at all, before the worker started.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "RUST_BACKTRACE": "0",  # what fails in Rust becomes an error that names the file
    # A killed worker leaves semaphores to the resource tracker, which removes them and warns; users need not know.
    "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
}

PRELOAD_LOG_VARIABLE = "ALIGN_PRELOAD_LOG"
"""Names the file that takes what libraries print while the fork server imports them; see `align.pipeline.preload`."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "tokenizers", "safetensors")
HEARTBEAT_SECONDS = 1.0
SECONDS_NAME = "seconds"
RANKS_NAME = "ranks"
"""Folder in a stage's work folder for the files of torch's agent."""


StopRequested = Callable[[], int | None]


def process_environment(user: Mapping[str, str]) -> dict[str, str]:
    """Variables of a process that loads models, to be set before it imports torch.

    Args:
        user: the variables that the user has set; those about threads stay.
    """
    return {**ENVIRONMENT, **thread_environment(user)}


def prepare_process() -> None:
    """Make this process one that may load a model; call it before anything imports torch.

    Raises:
        EnvironmentProblem: see `require_addresses`.
    """
    require_addresses()
    os.environ.update(process_environment(os.environ))


def job_environment(user: Mapping[str, str]) -> dict[str, str]:
    """Variables of a process that belongs to a run: as `process_environment`, with the run's folder for temporary files."""
    return {**process_environment(user), **temporary_environment()}


@dataclass(frozen=True)
class StageJob:
    """One stage to run, with everything it reads."""

    name: str
    stage_type: str
    fingerprint: str
    config: StageConfig
    seed: int
    entry: Entry
    artifacts: Mapping[str, Artifact]
    inputs: Mapping[str, str]
    recipe: Mapping[str, Any]
    command: list[str]
    memory: MemoryChoice
    ordered_at: float
    """When the runner came to it, by `time.monotonic`, which all processes of a machine share."""
    spread: Spread = ALONE
    """Into how many processes it is divided."""
    pool: Pool = LOCAL
    """Where its samplers and scorers work."""
    engine_host: Connection | None = None
    """Where it reaches the engine of the run."""
    share: Share = WHOLE
    """What it has of the machine; the GPUs are those that its process sees."""
    ray_address: str = "auto"
    """Of the Ray cluster, if several nodes train."""


class _WorkSeconds:
    """Wall time of a stage over all attempts, saved every second so that a killed attempt counts too."""

    def __init__(self, entry: Entry) -> None:
        self._path = entry.work / SECONDS_NAME
        self._started = time.monotonic()
        try:
            before = float(read_small_file(self._path))
        except (OSError, ValueError):
            before = 0.0
        self._before = before if 0 <= before < math.inf else 0.0
        self._stop = threading.Event()
        threading.Thread(target=self._beat, name="work-seconds", daemon=True).start()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._path.write_text(f"{self.total():.3f}")
            except OSError:
                return  # the folder is gone or the disk is full; the stage itself reports that

    def total(self) -> float:
        return self._before + time.monotonic() - self._started

    def stop(self) -> float:
        self._stop.set()
        return self.total()


def run_stage(job: StageJob, emit: Emit, stop: StopRequested) -> None:
    """Run a stage and commit its result.

    Raises:
        AlignError: see `align.errors`; a full disk and a lack of memory are among them. Anything else is a bug.
    """
    # Before the lock: waiting for another run is not part of a start.
    start_seconds = time.monotonic() - job.ordered_at
    try:
        with job.share.threads():
            _run_under_lock(job, emit, stop, start_seconds)
    except Exception as error:
        known = _as_align_error(error, job)
        if known is None or known is error:
            raise
        raise known from error


def _run_under_lock(job: StageJob, emit: Emit, stop: StopRequested, start_seconds: float) -> None:
    def waiting(holder: str) -> None:
        emit(Waiting(stage=job.name, holder=holder))

    with hold(job.entry.lock_path, on_wait=waiting, give_up=lambda: stop() is not None) as held:
        if not held:
            raise Interrupted("Stopped while waiting for another run.", signal_number=stop() or signal.SIGTERM)
        state, problem = job.entry.check(job.entry.known_hashes)
        if state == "damaged":
            emit(Quarantined(stage=job.name, path=str(job.entry.quarantine()), problem=problem))
        # The plan is older than the lock: another run may have finished this stage since.
        made_by_another = job.entry.read_manifest() if state == "done" else None
        if made_by_another is not None:
            emit(StageCached(stage=job.name, seconds=made_by_another.seconds, source="a run that went on beside this one"))
            return
        with profiled(start=start_seconds) as profile:
            manifest = _run_and_commit(job, emit, stop, start_seconds, profile)
            phases = profile.seconds()
    emit(StageFinished(stage=job.name, seconds=manifest.seconds, metrics=manifest.metrics, phases=phases))


def _run_and_commit(job: StageJob, emit: Emit, stop: StopRequested, start_seconds: float, profile: Profile) -> Manifest:
    stage = STAGES[job.stage_type]
    job.entry.begin()
    seconds = _WorkSeconds(job.entry)
    alone = Rank(0, 1, emit, stop)
    context = _context(job, alone)
    try:
        reads = {"epochs": stage.reads_epochs, "origins": stage.reads_origins}
        verify_inputs(job.artifacts, job.inputs, context.store_root, emit, **reads)
        peak_bytes = 0
        if job.spread.is_shared:
            # This process holds the lock and commits; the ranks only train.
            found = run_ranks(
                partial(_run_rank, job),
                job.spread,
                folder=job.entry.work / RANKS_NAME,
                emit=emit,
                stop_requested=stop,
                address=job.ray_address,
                name=job.name,
            )
            (outcome, phases), peak_bytes = found.value, found.peak_bytes
            for phase in phases.keys() - {"other"}:
                profile.add(phase, phases[phase])
        else:
            outcome = stage.run(context)
        _refuse_broken(job, outcome)
        kind = ADAPTER_KINDS[stage.produces] if ModelFolder(job.entry.path / MODEL_FOLDER).is_adapter else stage.produces
        with context.saving():
            manifest = _manifest(job, kind, stage.version, outcome, start_seconds, peak_bytes)
            return job.entry.commit(manifest, seconds=seconds.stop)
    finally:
        seconds.stop()


def _refuse_broken(job: StageJob, outcome: StageOutcome) -> None:
    """Raise StageError if a number of the result is NaN or infinite: what has no value is None there, so it means nothing."""
    broken = [f"{key} is {value}" for key, value in not_finite(outcome.metrics)]
    if broken:
        more = f" and {len(broken) - MAX_NAMED:,} more" if len(broken) > MAX_NAMED else ""
        hint = f"Nothing was kept as a result. {BROKEN_NUMBERS}"
        raise StageError(f"{job.name}: of its result, {', '.join(broken[:MAX_NAMED])}{more}", hint=hint)


def _run_rank(job: StageJob, rank: Rank) -> tuple[StageOutcome, dict[Phase, float]]:
    """The outcome, and where the time of this rank went."""
    with profiled() as profile:
        return STAGES[job.stage_type].run(_context(job, rank)), profile.seconds()


def _context(job: StageJob, rank: Rank) -> StageContext[Any]:
    return StageContext(
        name=job.name,
        config=job.config,
        artifacts=job.artifacts,
        output=job.entry.path,
        store_root=job.entry.path.parent,
        work=job.entry.work,
        seed=job.seed,
        emit=rank.emit,
        stop_requested=rank.stop_requested,
        memory=job.memory,
        rank=rank.number,
        spread=job.spread,
        pool=job.pool,
        engine_host=job.engine_host,
        recipe=job.recipe,
        command=job.command,
    )


def _manifest(job: StageJob, kind: str, version: int, outcome: StageOutcome, start_seconds: float, peak_bytes: int) -> Manifest:
    # Linux counts KiB, and of children only the largest; no number exists for several processes together.
    usage = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return Manifest(
        kind=kind,
        stage=job.stage_type,
        stage_version=version,
        fingerprint=job.fingerprint,
        config=job.config.model_dump(mode="json"),
        inputs=dict(job.inputs),
        input_sources={name: source for name in job.inputs if (source := job.artifacts[name].manifest.source) is not None},
        seed=job.seed,
        versions={"python": platform.python_version(), **versions_of(*LIBRARIES), **outcome.versions},
        rows_in=outcome.rows_in,
        rows_out=outcome.rows_out,
        dropped=outcome.dropped,
        machine={**_machine_of(job), **outcome.machine},
        metrics=outcome.metrics,
        start_seconds=round(start_seconds, 3),
        peak_memory_bytes=peak_bytes or peak_gpu_bytes() or max(u.ru_maxrss for u in usage) * 1024,
    )


def _machine_of(job: StageJob) -> dict[str, Any]:
    """How the stage was spread; empty where it was on one device, and had all of it."""
    part = {"parts": job.share.parts} if job.share.parts > 1 else {}
    if job.spread.is_shared or job.spread.engines is not None:
        return {**part, **job.spread.facts}
    engines, pool = getattr(job.config, "num_workers", 1), job.pool
    if engines == 1 and pool == LOCAL:
        return part
    return {**part, "engines": engines, "tensor_parallel": pool.gpus_each, "pool": pool.kind}


def _as_align_error(error: BaseException, job: StageJob) -> AlignError | None:
    """The error as the user should see it; None for a bug."""
    if not isinstance(error, Interrupted | DamagedInputs) and (gone := _removed(error, job)) is not None:
        return gone
    if isinstance(error, AlignError):
        return error
    if (problem := out_of_memory(error)) is not None:
        # Passes that are too large have been made smaller already.
        hint = "Choose an 8-bit optimizer or an adapter (peft), or lower max_tokens. align plan --memory compares them."
        return StageError(f"{job.name}: out of memory ({problem})", hint=hint)
    found = system_problem(error, job.entry.path)
    return None if found is None else EnvironmentProblem(f"{job.name}: {found.message}", hint=found.hint)


def _removed(error: BaseException, job: StageJob) -> StageError | None:
    """What to say where a folder that the stage reads or writes was removed while it ran, so that the error follows from that."""
    for name, artifact in job.artifacts.items():
        if not artifact.path.is_dir():
            message = f"{job.name}: the result of {name} was removed while this stage needed it: {artifact.path}"
            return StageError(message, hint=f"Run the same command again: it makes {name} again, unless it is an input of yours.")
    missed = Path(str(error.filename)) if isinstance(error, FileNotFoundError) else Path()
    if job.entry.path in missed.parents and not job.entry.work.is_dir():
        message = f"{job.name}: its folder was removed while it ran: {job.entry.path}"
        return StageError(message, hint="Run the same command again: this stage begins anew.")
    return None
