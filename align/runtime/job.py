"""A job, and what its process does: runs it, and sends its events and how it ended to the process that started it."""

from __future__ import annotations

import importlib
import multiprocessing.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from align.errors import AlignError
from align.runtime.events import Emit, Event
from align.runtime.process import end_with_parent, send_output_to
from align.runtime.signals import FROM_TERMINAL, StopSignals, ignore
from align.system_errors import system_problem


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
    checkpoint_request: Path | None = None
    """A file whose existence asks for a checkpoint; None: the job writes none."""
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
    ignore(FROM_TERMINAL)
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
    stop = StopSignals()
    ignore(FROM_TERMINAL)
    signal.signal(signal.SIGTERM, stop.remember)

    def send(message: Event | Ended) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, OSError):
            os._exit(1)  # the parent is gone

    try:
        send_output_to(job.log)
        # Line by line, so that a kill loses nothing that was printed before.
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
        job.run(send, stop)
        send(Ended())
    except BaseException as error:  # the parent decides what the user sees
        known = error if isinstance(error, AlignError) else system_problem(error, job.log)
        send(Ended(known, traceback.format_exc()))
        with suppress(OSError):  # a full disk may be what ended the job
            traceback.print_exc()
    # `os._exit` skips them, and temporary folders of multiprocessing would stay.
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # vLLM and torch may hang in their own exit handlers; everything of ours is on disk
