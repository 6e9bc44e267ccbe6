"""Launchers run one job at a time and decide in which process: forked from a preloaded one, a new one, or the caller's own.

`launcher_for` alone decides which. A job whose training several processes share starts them itself: see `align.runtime.ranks`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Protocol

from align.errors import EXIT_BUG, AlignError, Interrupted, StageError
from align.runtime.events import Emit, Event, Note, Saving
from align.runtime.gpus import visible_gpus
from align.runtime.process import RemoteTraceback, end_with_parent, how_it_ended, memory_hint, send_output_to, start
from align.runtime.signals import StopSignals, ignored

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
"""How long a job may go on after a request to stop, without the time in which it is saving."""
LOG_TAIL_LINES = 8
AT_ONCE = "stopped at once; it goes on from its last checkpoint."


class StageBug(RuntimeError):
    """An error in align itself, in the process of a job; carries that process's traceback."""

    exit_code = EXIT_BUG


@dataclass(frozen=True)
class Job:
    """Something to run to its end."""

    name: str
    run: Callable[[Emit, Callable[[], int | None]], None]
    """Takes a function that takes events, and one that gives the number of the signal that asked to stop, or None. Picklable, and
    of a module, because no process of a job imports `__main__`."""
    log: Path
    """Takes what the job's process prints."""
    environment: Mapping[str, str] = field(repr=False)
    """Set before the job runs. May hold keys."""
    can_fork: bool = True
    """Whether the job can run in a process forked from the preloaded one."""


class Launcher(Protocol):
    """Runs jobs."""

    def run(self, job: Job, emit: Emit, stop: StopSignals) -> None:
        """Run a job to its end.

        Args:
            emit: called in this thread with the job's events, while it runs.
            stop: once it has a signal, the job may end at its next checkpoint. A second signal ends it at once.
        Raises:
            AlignError: what the job raised.
            Interrupted: if the job stopped, or was killed, after a signal.
            StageError: if the job's process died.
            StageBug: if the job raised anything else; a launcher without a process lets that through as it is.
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


class InProcess:
    """Runs jobs in the caller's process, so that a debugger or a profiler sees them."""

    def run(self, job: Job, emit: Emit, stop: StopSignals) -> None:
        """See `Launcher.run`. No job is killed after `GRACE_SECONDS`."""
        stop.second_interrupts = True
        # stdout carries the caller's result.
        with _environment(job.environment), redirect_stdout(sys.stderr):
            try:
                job.run(emit, stop)
            except KeyboardInterrupt:
                raise Interrupted(AT_ONCE, signal_number=stop() or signal.SIGINT) from None
            finally:
                stop.second_interrupts = False


class Spawned:
    """Runs every job in a new process, which imports everything itself."""

    def run(self, job: Job, emit: Emit, stop: StopSignals) -> None:
        """See `Launcher.run`."""
        _run_in(multiprocessing.get_context("spawn"), job, emit, stop)


class Forked:
    """Runs every job in a process forked from a server that has imported `preload`; the server starts importing at once."""

    def __init__(self, preload: str, environment: Mapping[str, str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload])
        # A terminal sends Ctrl-C to the server too, and it would die of it in the middle of its imports.
        with _environment(environment), ignored(signal.SIGINT):
            forkserver.ensure_running()

    def run(self, job: Job, emit: Emit, stop: StopSignals) -> None:
        """See `Launcher.run`."""
        _run_in(self._context if job.can_fork else multiprocessing.get_context("spawn"), job, emit, stop)


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


@dataclass(frozen=True)
class _Ended:
    """The last message of a job's process."""

    error: AlignError | None = None
    trace: str = ""
    """Traceback of the error; without an error, that of a bug."""


class _Grace:
    """The time that a job has left after a request to stop. It stands still while the job is saving."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._is_saving = False

    def begin(self) -> None:
        self._since = time.monotonic()

    @property
    def has_begun(self) -> bool:
        return self._since is not None

    def hear(self, event: Event) -> None:
        """Take an event of the job."""
        if isinstance(event, Saving):
            self._is_saving = event.seconds is None
            # Half a checkpoint is none, and a large one takes minutes: the time begins anew after it.
            self._since = None if self._since is None else time.monotonic()

    @property
    def is_over(self) -> bool:
        return self._since is not None and not self._is_saving and time.monotonic() - self._since > GRACE_SECONDS


def _run_in(context: ForkServerContext | SpawnContext, job: Job, emit: Emit, stop: StopSignals) -> None:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, job), name=f"align-{job.name}")
    try:
        start(process)
    except (EOFError, ConnectionError) as error:
        if (number := stop()) is not None:
            raise Interrupted("stopped before it began.", signal_number=number) from None
        hint = f"Run the same command again. Log: {job.log}"
        raise StageError(f"{job.name}: the process that starts stages died", hint=hint) from error
    # Only the child holds that end now, so `recv` raises EOFError when the child dies.
    sender.close()
    grace = _Grace()
    try:
        while True:
            ready = wait([receiver, process.sentinel], timeout=POLL_SECONDS)
            # Messages first: a process that has ended may have left its last ones in the pipe.
            if receiver in ready:
                try:
                    message: Event | _Ended | None = receiver.recv()
                except EOFError:
                    message = None
                if isinstance(message, _Ended):
                    return _raise_error(message, job)
                if message is not None:
                    grace.hear(message)
                    emit(message)
                    continue
            if process.sentinel in ready:
                process.join()
                raise _death(process.exitcode or 0, job, stop)
            if stop.received and not grace.has_begun:
                grace.begin()
                emit(Note(stage=job.name, text="stopping; what is finished is being kept"))
                process.terminate()
            if len(stop.received) > 1 or grace.is_over:
                process.kill()
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        receiver.close()


def _raise_error(ended: _Ended, job: Job) -> None:
    if ended.error is not None:
        raise ended.error from RemoteTraceback(ended.trace)
    if ended.trace:
        raise StageBug(f"{job.name} failed:\n{ended.trace}")


def _death(code: int, job: Job, stop: StopSignals) -> AlignError:
    if (number := stop()) is not None:
        return Interrupted(AT_ONCE, signal_number=number)
    tail = "\n".join(f"  {line}" for line in _last_lines(job.log))
    return StageError(
        f"{job.name}: its process {how_it_ended(code)} before it was done. The log ends with:\n{tail}",
        hint=f"Run the same command again to go on from here. {memory_hint(code)}Log: {job.log}",
    )


def _last_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes()[-8192:].decode(errors="replace")
    except OSError:
        return []
    width = shutil.get_terminal_size((120, 24)).columns - 4
    return [line[:width] for line in text.splitlines() if line.strip()][-LOG_TAIL_LINES:]


def _serve(connection: Connection, job: Job) -> None:
    """Entry point of a job's process: run the job, send its events, and last how it ended."""
    end_with_parent()
    os.environ.update(job.environment)
    send_output_to(job.log)
    # Line by line, so that a kill loses nothing that was printed before.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    stop = StopSignals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to us too, but the parent decides
    signal.signal(signal.SIGTERM, stop.remember)

    def send(message: Event | _Ended) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, OSError):
            os._exit(1)  # the parent is gone

    try:
        job.run(send, stop)
        send(_Ended())
    except BaseException as error:  # the parent decides what the user sees
        traceback.print_exc()
        send(_Ended(error if isinstance(error, AlignError) else None, traceback.format_exc()))
    # `os._exit` skips them, and temporary folders of multiprocessing would stay.
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # vLLM and torch may hang in their own exit handlers; everything of ours is on disk
