"""Files that are complete or absent: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from align.errors import EnvironmentProblem
from align.system_errors import explained, system_problem

TEMPORARY_SUFFIX = ".tmp"
# Another file system, one without hard links, too many names of one file, or a file of another user.
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_way(path: Path) -> None:
    """Remove an empty folder, or a link that leads to no file, in the place of a file that is to be written.

    Raises:
        EnvironmentProblem: for a folder with something in it, which is the user's.
    """
    if path.is_symlink() and not path.is_file():
        path.unlink()
    if path.is_symlink() or not path.is_dir():
        return
    try:
        path.rmdir()
    except OSError as error:
        raise EnvironmentProblem(f"{path}: is a folder; a file is to be written there", hint="Move it away.") from error


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` only if the block ends without an exception.

    Raises:
        EnvironmentProblem: if the operating system refuses to write; see `align.system_errors`.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system only; a random name, because two processes may
    # write the same path.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    written = None
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            # Without it, a power cut after the rename can leave an empty file under the final name.
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    # Ctrl-C and a stop must not leave temporary files either.
    except BaseException as error:
        with contextlib.suppress(OSError):  # it may never have been made
            written = temporary.stat().st_size or None
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        if (problem := system_problem(error, path, needed=written)) is None:
            raise
        raise problem from error
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """A file with this content, or the one that was there before: never a part of either."""
    with atomic_writer(path) as stream:
        stream.write(content)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline; refuses NaN and infinities."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode())


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, for files that a library wrote by itself."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as stream:
                os.fsync(stream.fileno())
        fsync_folder(Path(parent))


def link_tree(source: Path, target: Path) -> None:
    """Give every file below `source` a second name below `target`, which must not exist, and take no space on the disk for it.

    Both names are one file, so nothing may ever write into a file of the store: whoever changes one puts a new file in its place.
    Where the file system cannot link, files are copied.

    Raises:
        FileNotFoundError, FileExistsError: if there is no `source`, or there is a `target`.
    """

    def fail(error: OSError) -> None:
        raise error  # else a folder that cannot be read would be an empty one

    for parent, _, names in os.walk(source, onerror=fail):
        folder = target / os.path.relpath(parent, source)
        folder.mkdir(parents=True)
        for name in names:
            link_file(Path(parent, name), folder / name)


def link_file(source: Path, target: Path) -> None:
    """Give one file a second name, as `link_tree` does; a link is followed first. The target's folder is created."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = Path(os.path.realpath(source))
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        shutil.copyfile(source, target)
