"""`align run` as a process that has imported the libraries already, for scripts that start it a thousand times.

The process is forked from this one, and its fork server from it, where the command would start two interpreters and import for
ten seconds. From there on everything is the command's: the same processes below each other, with the same pipes between them.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

from align.cli.main import main
from align.pipeline.worker import ENVIRONMENT

MESSAGE_BYTES, MOST_DESCRIPTORS, HIGH_DESCRIPTOR = 1 << 17, 16, 1000
_spawn: Callable[..., int] = util.spawnv_passfds
_server: tuple[int, socket.socket] | None = None
"""The process that becomes the run's fork server, and the connection to it."""


def import_libraries() -> None:
    """Import what the fork server of a run imports. No thread may exist in this process afterwards: call it, then only fork."""
    os.environ.update(ENVIRONMENT)
    importlib.import_module("align.pipeline.preload")
    vars(util)["spawnv_passfds"] = _spawn_warm


def in_a_fork(work: Callable[[], Any], output: Path | None = None) -> int:
    """Start a process that does some work; its id. The exit code is what the work returns.

    Args:
        output: takes what it prints.
    """
    if process := os.fork():
        return process
    code = 1
    try:
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        util._run_finalizers()  # type: ignore[attr-defined]
        os._exit(code)


def start_warm(arguments: Sequence[str], output: Path) -> int:
    """Start `align` with these arguments; the id of its process."""

    def run() -> object:
        _prepare_fork_server()
        return main(arguments)

    return in_a_fork(run, output)


def _prepare_fork_server() -> None:
    """Fork the run's fork server before the run does anything: what Ray starts for its look at a cluster would not survive."""
    global _server
    ours, theirs = socket.socketpair()
    if process := os.fork():
        theirs.close()
        _server = process, ours
        return
    code = 1
    try:
        ours.close()
        content, received, *_ = socket.recv_fds(theirs, MESSAGE_BYTES, MOST_DESCRIPTORS)
        if not content:  # the run ended without a stage
            os._exit(0)
        command, environment, wanted = pickle.loads(content)
        os.environ.clear()
        os.environ.update(environment)
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGH_DESCRIPTOR) for descriptor in received]
        for source, target in zip(high, wanted, strict=True):
            os.dup2(source, target)
        kept = sorted({0, 1, 2, *wanted})
        for low, above in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, min(above, 4096))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        forkserver._forkserver.__init__()  # type: ignore[misc]
        exec(command, {})
        code = 0
    except SystemExit:  # how a fork server ends
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _spawn_warm(path: bytes, arguments: list[str], descriptors: Sequence[int]) -> int:
    """In place of multiprocessing's function that starts a Python: the fork server is there."""
    global _server
    if "forkserver" not in arguments[-1] or _server is None:
        return _spawn(path, arguments, descriptors)
    (process, connection), _server = _server, None
    content = pickle.dumps((arguments[-1], dict(os.environ), list(descriptors)))
    with connection:
        try:
            socket.send_fds(connection, [content], descriptors)
        except BrokenPipeError:  # it was killed before it became one
            return _spawn(path, arguments, descriptors)
    return process
