"""`align run` as a process that has imported the libraries already, for benchmarks that start it a hundred times.

The process is forked from this one, and its fork server from it, where the command would start two interpreters and import for
ten seconds. From there on everything is the command's: the same processes below each other, with the same pipes between them.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

from align.cli.main import main
from align.pipeline.worker import ENVIRONMENT

_spawn: Callable[..., int] = util.spawnv_passfds


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
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        util._run_finalizers()  # type: ignore[attr-defined]
        os._exit(code)


def start_warm(arguments: Sequence[str], output: Path) -> int:
    """Start `align` with these arguments; the id of its process."""
    return in_a_fork(lambda: main(arguments), output)


def _spawn_warm(path: bytes, arguments: list[str], descriptors: Sequence[int]) -> int:
    """In place of multiprocessing's function that starts a Python: a fork server is forked."""
    if "forkserver" not in arguments[-1]:
        return _spawn(path, arguments, descriptors)
    if process := os.fork():
        return process
    kept = sorted({0, 1, 2, *descriptors})
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, min(high, 4096))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    forkserver._forkserver.__init__()  # type: ignore[misc]  # its lock is held where it was forked
    try:
        exec(arguments[-1], {})
    finally:
        os._exit(1)
