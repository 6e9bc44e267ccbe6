"""What every child process does at its start, and a description of its end."""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

RUNNER_VARIABLE = "ALIGN_RUNNER"
"""The number of the process that started the fork server."""
PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when the one that started it ends."""
_starting = threading.Lock()


def start(process: BaseProcess) -> None:
    """Start a spawned or forked process that does not import the user's `__main__`.

    multiprocessing would run the user's script again in every such process, so that functions of it can be unpickled there. A
    script without a `__main__` guard would then run its recipe again, and wait for the lock that its parent holds. What we send
    to processes are functions and rows of modules, so none of them needs `__main__`.
    """
    # multiprocessing reads the name and file of `__main__` when a process starts, and has no option to leave them out.
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main


def end_with_parent() -> None:
    """Kill this process as soon as the process that started it has ended, however it ended. No orphan goes on writing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # It closes with the process that started this one, not with the fork server.
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        # Not an exception: this is not the main thread, and a handler could delay the end.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def end_with_runner() -> None:
    """Have Linux kill this process as soon as the runner has ended, also while it imports and runs no Python.

    Only for a process that the runner has started itself. The fork server looks at its runner only between two requests, so
    that it would live on until its imports are done.
    """
    with contextlib.suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ.get(RUNNER_VARIABLE, os.getppid())):  # it ended before
        os._exit(1)


def send_output_to(log: Path) -> None:
    """From now on, append the output of this process and its children to a file, that of C libraries included."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A line is one write, so that processes do not mix theirs. With PYTHONUNBUFFERED, print writes its line end apart.
            stream.reconfigure(line_buffering=True, write_through=False)


def how_it_ended(code: int) -> str:
    """The exit code of a process, in words."""
    return f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"


class RemoteTraceback(Exception):
    """The traceback of another process, as the cause of the error that came from there."""

    def __init__(self, text: str) -> None:
        super().__init__(f"\n{text}")
