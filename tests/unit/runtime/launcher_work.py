"""Jobs for launchers; apart from the tests, so that a process need not import pytest to run them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from align.errors import DataError, Interrupted
from align.runtime.events import Emit, Note, Saving

StopRequested = Callable[[], int | None]


def note_process_and_variable(emit: Emit, stop: StopRequested) -> None:
    emit(Note(stage="job", text=str(os.getpid())))
    emit(Note(stage="job", text=os.environ["ALIGN_TEST"]))


def note_preloaded(emit: Emit, stop: StopRequested) -> None:
    emit(Note(stage="job", text=str(os.getpid())))
    emit(Note(stage="job", text=str("launcher_preload" in sys.modules)))


def say_through(connection: Connection, emit: Emit, stop: StopRequested) -> None:
    connection.send("heard")


def print_something(emit: Emit, stop: StopRequested) -> None:
    print("from the job")


def refuse(emit: Emit, stop: StopRequested) -> None:
    raise DataError("row 3", hint="Look at it.")


def fail(emit: Emit, stop: StopRequested) -> None:
    raise KeyError("a bug")


def die(emit: Emit, stop: StopRequested) -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_stop(emit: Emit, stop: StopRequested) -> None:
    emit(Note(stage="job", text="begun"))
    while (number := stop()) is None:
        time.sleep(0.01)
    raise Interrupted("Stopped; what is finished is kept.", signal_number=number)


def never_stop(emit: Emit, stop: StopRequested) -> None:
    emit(Note(stage="job", text="begun"))
    while True:
        time.sleep(0.01)


def write_slowly(emit: Emit, stop: StopRequested) -> None:
    """Ends after jobs that do nothing."""
    time.sleep(1)
    emit(Note(stage="job", text="not written" if stop() else "written"))


def save_slowly(emit: Emit, stop: StopRequested) -> None:
    """Begins a checkpoint, is asked to stop while it is written, and stops when it is."""
    emit(Saving(stage="job"))
    emit(Note(stage="job", text="begun"))
    time.sleep(3)
    emit(Saving(stage="job", seconds=3.0))
    emit(Note(stage="job", text="written"))
    wait_for_stop(emit, stop)


def hang_after_saving(emit: Emit, stop: StopRequested) -> None:
    """Has saved, is asked to stop, and does not."""
    emit(Saving(stage="job"))
    emit(Saving(stage="job", seconds=0.0))
    never_stop(emit, stop)
