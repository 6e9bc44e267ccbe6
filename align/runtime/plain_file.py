"""Files that someone else may have put there: opened only if they are files, and read whole only if their size is possible.

A pipe makes its reader wait for ever, and a device gives bytes without end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 64 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def other_kind(path: Path) -> str | None:
    """What is there in place of a file, such as `a pipe`; None for a file, or where there is nothing."""
    try:
        return _kind(os.stat(path))
    except (OSError, ValueError):  # the latter for a name with a null character
        return None


def open_plain(path: Path, *, buffering: int = -1) -> BinaryIO:
    """The content of a file, from its start.

    Args:
        buffering: as of `open`.
    Raises:
        OSError: if it cannot be opened, or is not a file; the latter without waiting for whoever writes into a pipe.
    """
    _require(os.stat(path), path)  # first: merely opening a device may do something, and a socket cannot be opened
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb", buffering=buffering)  # type: ignore[return-value]  # its type depends on `buffering`


def read_small_file(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: if it cannot be read, is not a file, or is larger than `most_bytes`.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most_bytes:
            # Not EFBIG, which the system says of a file that is written.
            raise OSError(errno.EOVERFLOW, f"has {size:,} bytes, more than {most_bytes:,}", str(path))
        return stream.read(most_bytes)


def _require(status: os.stat_result, path: Path) -> None:
    if (kind := _kind(status)) is not None:
        # Python gives EISDIR a class of its own, as for any folder that is opened.
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, f"is {kind}, not a file", str(path))


def _kind(status: os.stat_result) -> str | None:
    return next((name for holds, name in _KINDS if holds(status.st_mode)), None)
