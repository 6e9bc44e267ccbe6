"""Jobs in processes of their own, side by side: their events, the requests to stop, and how each of them ended."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from align.errors import EXIT_BUG, AlignError, Interrupted, StageError
from align.runtime.control_group import MemoryKills
from align.runtime.events import Emit, Event, Note, Saving
from align.runtime.job import Ended, Job
from align.runtime.plain_file import open_plain
from align.runtime.process import RemoteTraceback, how_it_ended
from align.runtime.signals import StopSignals

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
"""How long a job may go on after a request to stop, without the time in which it is saving."""
LOG_TAIL_LINES, LOG_TAIL_BYTES = 8, 8192
AT_ONCE = "stopped at once; it goes on from its last checkpoint."


class StageBug(RuntimeError):
    """An error in align itself, in the process of a job; carries that process's traceback."""

    exit_code = EXIT_BUG


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


@dataclass
class RunningJob:
    """A job and its process."""

    job: Job
    process: BaseProcess
    receiver: Connection
    """Where its messages arrive; the process alone holds the other end, so that its death ends them."""
    grace: _Grace = field(default_factory=_Grace)
    kills: MemoryKills = field(default_factory=MemoryKills)

    def receive(self) -> Event | Ended | None:
        """The next message; None if there will be no more."""
        try:
            message: Event | Ended = self.receiver.recv()
        except EOFError:
            return None
        return message

    def end(self) -> None:
        """End the process, if it has not ended."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.receiver.close()


def supervise(jobs: Sequence[Job], start: Callable[[Job], RunningJob], emit: Emit, stop: StopSignals) -> dict[str, BaseException]:
    """Run jobs side by side, each to its end. Once one has failed, the others are asked to stop.

    Args:
        start: starts the process of a job, or raises an AlignError.
        emit, stop: see `Launcher.run`.
    Returns:
        What each job that failed would have raised, by its name; the one that failed first comes first.
    """
    failures: dict[str, BaseException] = {}
    running: list[RunningJob] = []
    culprit = ""
    """The job that failed by itself, for which the others are stopped."""
    try:
        stop.checkpoint_files = checkpoint_files(jobs)
        for job in jobs:
            try:
                running.append(start(job))
            except AlignError as error:
                failures[job.name] = error
                break
        while running:
            culprit = culprit or ("" if stop.received else next(iter(failures), ""))
            for one in running:
                if (stop.received or culprit) and not one.grace.has_begun:
                    _ask_to_stop(one, culprit, emit)
            sources = [source for one in running for source in (one.receiver, one.process.sentinel)]
            ready = wait(sources, timeout=POLL_SECONDS)
            for one in tuple(running):
                # Messages first: a process that has ended may have left its last ones in the pipe.
                message = one.receive() if one.receiver in ready else None
                if isinstance(message, Event):
                    one.grace.hear(message)
                    emit(message)
                elif isinstance(message, Ended) or one.process.sentinel in ready:
                    found = _death(one, culprit, stop) if message is None else _error(message, one.job)
                    running.remove(one)
                    one.end()
                    if found is not None:
                        failures[one.job.name] = found
                elif one.grace.is_over or (one.grace.has_begun and len(stop.received) > (0 if culprit else 1)):
                    one.process.kill()  # only where no message waits: it may be the last
    finally:
        stop.checkpoint_files = []
        for one in running:
            one.end()
    return failures


def checkpoint_files(jobs: Sequence[Job]) -> list[Path]:
    """What SIGUSR1 creates while the jobs run."""
    return [job.checkpoint_request for job in jobs if job.checkpoint_request is not None]


def _ask_to_stop(one: RunningJob, culprit: str, emit: Emit) -> None:
    one.grace.begin()
    why = f", as {culprit} failed" if culprit else ""
    emit(Note(stage=one.job.name, text=f"stopping{why}; what is finished is being kept"))
    one.process.terminate()


def _error(ended: Ended, job: Job) -> Exception | None:
    error: Exception | None = ended.error
    if error is not None:
        error.__cause__ = RemoteTraceback(ended.trace)
    elif ended.trace:
        error = StageBug(f"{job.name} failed:\n{ended.trace}")
    return error


def _death(one: RunningJob, culprit: str, stop: StopSignals) -> AlignError:
    """Why a process ended without a last message."""
    one.process.join()
    code = one.process.exitcode or 0
    if (number := stop()) is not None or (culprit and one.grace.has_begun):
        return Interrupted(AT_ONCE, signal_number=number or signal.SIGTERM)
    tail = "\n".join(f"  {line}" for line in _last_lines(one.job.log))
    return StageError(
        f"{one.job.name}: its process {how_it_ended(code)} before it was done. The log ends with:\n{tail}",
        hint=f"Run the same command again to go on from here. {one.kills.hint(code)}Log: {one.job.log}",
    )


def _last_lines(path: Path) -> list[str]:
    try:
        with open_plain(path) as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LOG_TAIL_BYTES))
            text = stream.read(LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    width = shutil.get_terminal_size((120, 24)).columns - 4
    return [line[:width] for line in text.splitlines() if line.strip()][-LOG_TAIL_LINES:]
