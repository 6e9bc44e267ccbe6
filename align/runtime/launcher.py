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
from align.runtime.job import Job, serve
from align.runtime.process import start
from align.runtime.signals import StopSignals, ignored
from align.runtime.supervise import AT_ONCE, RunningJob, supervise


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


def launcher_for(*, preload: str | None, environment: Mapping[str, str], in_process: bool = False) -> Launcher:
    """How this machine runs jobs: the one place that decides.

    Args:
        preload: module that the server imports before it forks the first job; None: the jobs need no such server.
        environment: set while the server imports.
        in_process: run jobs in the caller's process.
    """
    if in_process:
        return InProcess()
    # CUDA does not survive a fork. The preload does not initialise it, but on a GPU machine only a new process is sure.
    if preload is None or visible_gpus():
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
            with _environment(job.environment), redirect_stdout(sys.stderr):
                try:
                    job.run(emit, stop)
                except KeyboardInterrupt:
                    return {job.name: Interrupted(AT_ONCE, signal_number=stop() or signal.SIGINT)}
                except BaseException as error:
                    return {job.name: error}
                finally:
                    stop.second_interrupts = False
        return {}


class Spawned:
    """Runs every job in a new process, which imports everything itself."""

    def run(self, jobs: Sequence[Job], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
        """See `Launcher.run`."""
        context = multiprocessing.get_context("spawn")
        return supervise(jobs, lambda job: _started(context, job, stop), emit, stop)


class Forked:
    """Runs every job in a process forked from a server that has imported `preload`; the server starts importing at once."""

    def __init__(self, preload: str, environment: Mapping[str, str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload])
        # A terminal sends Ctrl-C to the server too, and it would die of it in the middle of its imports.
        with _environment(environment), ignored(signal.SIGINT):
            forkserver.ensure_running()

    def run(self, jobs: Sequence[Job], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
        """See `Launcher.run`."""
        spawn = multiprocessing.get_context("spawn")
        return supervise(jobs, lambda job: _started(self._context if job.can_preload else spawn, job, stop), emit, stop)


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
    except (EOFError, ConnectionError) as error:
        if (number := stop()) is not None:
            raise Interrupted("stopped before it began.", signal_number=number) from None
        hint = f"Run the same command again. Log: {job.log}"
        raise StageError(f"{job.name}: the process that starts stages died", hint=hint) from error
    # Only the child holds that end now, so `recv` raises EOFError when the child dies.
    sender.close()
    return RunningJob(job, process, receiver)
