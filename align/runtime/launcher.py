"""Launchers run jobs and decide in which process: forked from a preloaded one, a new one, or the caller's own.

`launcher_for` alone decides which. A job whose training several processes share starts them itself: see `align.runtime.ranks`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Protocol

from align.errors import Interrupted, StageError
from align.runtime.events import Emit
from align.runtime.gpus import visible_gpus
from align.runtime.job import Job, serve, serve_later
from align.runtime.process import RUNNER_VARIABLE, start
from align.runtime.signals import FROM_TERMINAL, StopSignals, ignored
from align.runtime.supervise import AT_ONCE, RunningJob, checkpoint_files, supervise


class Launcher(Protocol):
    """Runs jobs."""

    def run(self, jobs: Sequence[Job], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
        """Run jobs side by side, each to its end. Once one has failed, the others are asked to stop.

        Args:
            emit: called in this thread with the jobs' events, while they run.
            stop: once it has a signal, each job may end at its next checkpoint. A second signal ends all at once.
        Returns:
            What each job that failed would have raised, by its name; the one that failed first comes first. An AlignError: what
            the job raised. Interrupted: the job stopped, or was killed, after a signal or after another had failed. StageError:
            its process died. StageBug: the job raised anything else; a launcher without a process has that as it is.
        """

    def close(self) -> None:
        """End what waits for jobs, when no job runs any more."""


def launcher_for(*, preload: str | None, environment: Mapping[str, str], in_process: bool = False, num_jobs: int = 0) -> Launcher:
    """How this machine runs jobs: the one place that decides.

    Args:
        preload: module that is imported before a process knows its job; None: the jobs do not need it.
        environment: set while it is imported.
        in_process: run jobs in the caller's process.
        num_jobs: that will come, at most; for further ones nothing is imported in advance.
    """
    if in_process:
        return InProcess()
    # CUDA does not survive a fork. The preload does not initialise it, but on a GPU machine only a new process is sure.
    if visible_gpus():
        return Spawned(preload, environment, num_jobs)
    if preload is None:
        return Spawned()
    return Forked(preload, environment)


def run_one(launcher: Launcher, job: Job, emit: Emit, stop: StopSignals) -> None:
    """Run a single job.

    Raises:
        What `Launcher.run` returns.
    """
    for error in launcher.run([job], emit, stop).values():
        raise error


class InProcess:
    """Runs jobs in the caller's process, one after the other, so that a debugger or a profiler sees them."""

    def run(self, jobs: Sequence[Job], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
        """See `Launcher.run`. No job is killed after `GRACE_SECONDS`."""
        for job in jobs:
            stop.second_interrupts = True
            # stdout carries the caller's result.
            stop.checkpoint_files = checkpoint_files([job])
            with _environment(job.environment), redirect_stdout(sys.stderr):
                try:
                    job.run(emit, stop)
                except KeyboardInterrupt:
                    return {job.name: Interrupted(AT_ONCE, signal_number=stop() or signal.SIGINT)}
                except BaseException as error:
                    return {job.name: error}
                finally:
                    stop.second_interrupts, stop.checkpoint_files = False, []
        return {}

    def close(self) -> None:
        """Nothing waits."""


class Spawned:
    """Runs every job in a new process. If it has something to preload, the next one imports it while the jobs before run."""

    def __init__(self, preload: str | None = None, environment: Mapping[str, str] | None = None, num_jobs: int = 0) -> None:
        """See `launcher_for`."""
        self._context = multiprocessing.get_context("spawn")
        self._preload = preload
        self._environment = {} if environment is None else environment
        self._jobs_left = num_jobs
        self._spare: _Spare | None = None
        self._prepare()

    def run(self, jobs: Sequence[Job], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
        """See `Launcher.run`."""
        return supervise(jobs, lambda job: self._start(job, stop), emit, stop)

    def close(self) -> None:
        """End the process that waits for a job."""
        if self._spare is not None:
            self._spare.end()
            self._spare = None

    def _prepare(self) -> None:
        if self._preload is not None and self._spare is None and self._jobs_left > 0:
            self._spare = _Spare(self._context, self._preload, self._environment)

    def _start(self, job: Job, stop: StopSignals) -> RunningJob:
        self._jobs_left -= 1
        running = None
        if self._spare is not None and job.can_preload:
            running, self._spare = self._spare.take(job), None
        running = running or _started(self._context, job, stop)
        self._prepare()
        return running


class _Spare:
    """A process that has imported something, or is about to, and waits for its job."""

    def __init__(self, context: SpawnContext, preload: str, environment: Mapping[str, str]) -> None:
        self._receiver, sender = context.Pipe(duplex=False)
        # Duplex, as a socket takes a large job while the other end still imports, and a pipe does not.
        self._jobs, theirs = context.Pipe()
        arguments = (sender, theirs, preload, dict(environment))
        self._process = context.Process(target=serve_later, args=arguments, name="align-spare")
        with ignored(*FROM_TERMINAL):  # a terminal's Ctrl-C must not end it in the middle of its imports
            start(self._process)
        sender.close()
        theirs.close()

    def take(self, job: Job) -> RunningJob | None:
        """The job in this process; None if the process is dead."""
        try:
            self._jobs.send(job)
        except OSError:
            self.end()
            return None
        return RunningJob(job, self._process, self._receiver)

    def end(self) -> None:
        """End the process."""
        self._jobs.close()
        self._receiver.close()
        self._process.kill()
        self._process.join()


class Forked:
    """Runs every job in a process forked from a server that has imported `preload`; the server starts importing at once."""

    def __init__(self, preload: str, environment: Mapping[str, str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["align.runtime.tied", preload])
        # A terminal sends Ctrl-C to the server too, and it would die of it in the middle of its imports.
        runner = {RUNNER_VARIABLE: str(os.getpid())}
        with _environment({**environment, **runner}), ignored(*FROM_TERMINAL):
            forkserver.ensure_running()

    def run(self, jobs: Sequence[Job], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
        """See `Launcher.run`."""
        spawn = multiprocessing.get_context("spawn")
        return supervise(jobs, lambda job: _started(self._context if job.can_preload else spawn, job, stop), emit, stop)

    def close(self) -> None:
        """The server ends with this process, and serves the next run of it."""


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _started(context: ForkServerContext | SpawnContext, job: Job, stop: StopSignals) -> RunningJob:
    """A job whose process has been started.

    Raises:
        Interrupted, StageError: if the fork server is gone.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(sender, job), name=f"align-{job.name}")
    try:
        start(process)
    except (EOFError, ConnectionError, FileNotFoundError) as error:  # the last: of its socket
        if (number := stop()) is not None:
            raise Interrupted("stopped before it began.", signal_number=number) from None
        hint = f"Run the same command again. Log: {job.log}"
        raise StageError(f"{job.name}: the process that starts stages died", hint=hint) from error
    # Only the child holds that end now, so `recv` raises EOFError when the child dies.
    sender.close()
    return RunningJob(job, process, receiver)
