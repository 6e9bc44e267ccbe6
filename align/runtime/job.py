"""A job, and what its process does: runs it, and sends its events and how it ended to the process that started it."""

from __future__ import annotations

import importlib
import multiprocessing.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from align.errors import AlignError
from align.runtime.events import Emit, Event
from align.runtime.process import end_with_parent, send_output_to
from align.runtime.signals import StopSignals


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
    can_preload: bool = True
    """Whether the job can run in a process that has imported the launcher's modules before it knew the job."""


@dataclass(frozen=True)
class Ended:
    """The last message of a job's process."""

    error: AlignError | None = None
    trace: str = ""
    """Traceback of the error; without an error, that of a bug."""


def serve(connection: Connection, job: Job) -> None:
    """Entry point of a job's process."""
    end_with_parent()
    _run(connection, job)


def serve_later(connection: Connection, jobs: Connection, preload: str, environment: Mapping[str, str]) -> None:
    """Entry point of a process that imports `preload`, and then runs the job that comes through `jobs`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    os.environ.update(environment)
    importlib.import_module(preload)
    try:
        job = jobs.recv()
    except EOFError:
        os._exit(0)  # there is none
    _run(connection, job)


def _run(connection: Connection, job: Job) -> None:
    """Run the job, send its events, and last how it ended."""
    os.environ.update(job.environment)
    send_output_to(job.log)
    # Line by line, so that a kill loses nothing that was printed before.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    stop = StopSignals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to us too, but the parent decides
    signal.signal(signal.SIGTERM, stop.remember)

    def send(message: Event | Ended) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, OSError):
            os._exit(1)  # the parent is gone

    try:
        job.run(send, stop)
        send(Ended())
    except BaseException as error:  # the parent decides what the user sees
        traceback.print_exc()
        send(Ended(error if isinstance(error, AlignError) else None, traceback.format_exc()))
    # `os._exit` skips them, and temporary folders of multiprocessing would stay.
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # vLLM and torch may hang in their own exit handlers; everything of ours is on disk
