"""Small files that someone else may have put there: read only if they are regular and of a size that is possible."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 64 << 20


def read_small_file(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Content of a file. A device or a pipe under its name would give bytes without end, or make the reader wait for ever.

    Raises:
        OSError: if it cannot be read, is not a regular file, or is larger than `most_bytes`.
    """
    # Not blocking: opening a pipe would wait for whoever writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"has {status.st_size:,} bytes, more than {most_bytes:,}", str(path))
        return stream.read(most_bytes)
