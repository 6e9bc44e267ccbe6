"""A lock for one writer at a time. The holder writes its process and host beside it, so that a waiting process can show them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from align.runtime.plain_file import read_small_file
from align.store.atomic import make_way

POLL_SECONDS = 0.1


def describe_holder(path: Path) -> str:
    """Description of the process that holds the lock at `path`."""
    try:
        holder = json.loads(read_small_file(path.with_suffix(".holder")))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


@contextlib.contextmanager
def hold(path: Path, *, on_wait: Callable[[str], None], give_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the lock at `path`; the operating system frees it when the process dies, however it dies.

    Args:
        path: lock file; created if absent.
        on_wait: called once with the holder's description when the lock is not free.
        give_up: called while waiting; True ends the wait.
    Yields:
        True when the lock is held, False when the wait was given up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder_path = path.with_suffix(".holder")
    for own in (path, holder_path):
        if own.is_symlink():  # nobody puts one there on purpose, and what it leads to is not ours
            own.unlink(missing_ok=True)
        make_way(own)
    lock = FileLock(path)
    held = False
    has_reported = False
    while not held:
        try:
            # We poll instead of letting filelock wait, so that `on_wait` and `give_up` are called in between.
            lock.acquire(timeout=0)
            held = True
        except Timeout:
            if not has_reported:
                on_wait(describe_holder(path))
                has_reported = True
            if give_up():
                break
            time.sleep(POLL_SECONDS)
    try:
        if held:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            holder_path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}))
        yield held
    finally:
        if held:
            # Before the release: after it, this could delete the next holder's name.
            holder_path.unlink(missing_ok=True)
            lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock at `path` now. Writes nothing, so that it works on a read-only file system too."""
    try:
        # Not blocking: opening a pipe would wait for whoever writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False  # nobody who matters here holds a lock of others
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the lock that `hold` takes, shared
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
