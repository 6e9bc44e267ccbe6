"""What the operating system refuses, as an error that says what to do: a full disk, a limit, a permission, a failing device.

Libraries raise errors of their own for it (torch, safetensors, pyarrow), in which the number stands in the text or in the error
that came before. This module alone knows how to find it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

from align.errors import AlignError, EnvironmentProblem

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a write that found no room."""
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FAILING = {
    errno.EIO: "the disk, or the server of a network file system, failed",
    errno.ESTALE: "the network file system has lost the file (stale handle)",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ELOOP: "the links there lead in a circle",
}
_HINTS = {
    errno.ENAMETOOLONG: "Choose a folder with a shorter path, or a shorter name.",
    errno.ELOOP: "Remove the link, or choose another place.",
}
"""For what is no failure of the file system."""
_LINK_LOOP = "Symlink loop from "  # of pathlib
_KNOWN = NO_ROOM | _FORBIDDEN | _FAILING.keys() | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# "(os error 28)" and "Os { code: 28," of Rust's libraries, "[Errno 28]" and "[errno 28]" of Python's and Arrow's.
_NUMBER = re.compile(r"os error (\d+)|Os \{ code: (\d+)|\[errno (\d+)\]", re.IGNORECASE)
_TEXTS = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT, "File too large": errno.EFBIG}
_TORCH_WRITER = re.compile(r"PytorchStreamWriter failed|enforce fail at inline_container")
_NO_TEMPORARY = "No usable temporary directory"  # of the module tempfile, which has tried several and hides why
_NOT_OF_THE_FILE = _FORBIDDEN | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
LEAST_ADDRESSES = 4 << 30
"""Of a process that computes with torch. With 3 GiB the tiny project of the tests runs out of them; with 2, OpenBLAS waits for
ever for memory at its import."""
KEPT = "Run the same command again; what was finished is kept."
MOST_LINKS = 16
"""Errors that are looked at, from one to its cause."""
FEW_INODES = 16
"""Fewer than these are none: what the file that failed had taken is free again when this is looked at."""
LITTLE_BYTES = 1 << 20
"""Less than this is no room: a file system keeps some for itself."""


def address_limit() -> int | None:
    """Addresses in bytes that this process may have, by which some clusters limit memory; None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def require_addresses() -> None:
    """Refuse a limit of addresses within which torch cannot be used.

    Raises:
        EnvironmentProblem: with the limit and what it must be.
    """
    limit = address_limit()
    if limit is not None and limit < LEAST_ADDRESSES:
        raise EnvironmentProblem(
            f"a process may have {_mebibytes(limit)} of addresses here (ulimit -v), and torch's libraries alone take more: "
            f"at least {_mebibytes(LEAST_ADDRESSES)} are needed",
            hint="Raise the limit (ulimit -v unlimited), or ask for more memory in the batch job.",
        )


def no_more_memory() -> str:
    """What is to be told of an error that only says that there was no memory."""
    limit = address_limit()
    limited = "" if limit is None else f"; a process may have {_mebibytes(limit)} of addresses here (ulimit -v)"
    return f"the system gave no more memory{limited}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def system_problem(error: BaseException, place: Path, *, needed: int | None = None) -> EnvironmentProblem | None:
    """What to tell the user of an error of the operating system; None for an error of another kind.

    Args:
        error: of Python, or of a library that wrote or read a file.
        place: the file or folder that was worked on, for errors that name none. It need not exist.
        needed: bytes that were to be written, or more than were written, if known.
    """
    if isinstance(error, AlignError):
        return None
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY in str(error):
        return EnvironmentProblem(f"{error.strerror}", hint=f"Free some space there, or set TMPDIR to another folder. {KEPT}")
    number, path = _found(error)
    if number is None and _TORCH_WRITER.search(str(error)):
        return _no_room(_reason_of_torch(place), place, needed)
    if number is None:
        return None
    place = place if path is None else path
    if number in NO_ROOM:
        return _no_room(number, place, needed)
    if number in _FORBIDDEN:
        return _forbidden(number, place)
    if number in (errno.EMFILE, errno.ENFILE):
        return _too_many_files(number, place)
    if number == errno.ENOMEM:
        return EnvironmentProblem(f"{place}: {no_more_memory()}", hint=f"End other programs. {KEPT}")
    hint = _HINTS.get(number, f"Look at the system's log (dmesg), or ask whoever runs the file system. {KEPT}")
    return EnvironmentProblem(f"{place}: {_FAILING[number]}", hint=hint)


@contextlib.contextmanager
def explained(place: Path) -> Iterator[None]:
    """Raise what the operating system refuses inside as an EnvironmentProblem; see `system_problem`."""
    try:
        yield
    except Exception as error:
        if (problem := system_problem(error, place)) is None:
            raise
        raise problem from error


@contextlib.contextmanager
def writing_to(place: Path, *, hint: str = "Choose another place.") -> Iterator[None]:
    """As `explained`, for a place that a user named: one where no such file can be is an EnvironmentProblem, too.

    Args:
        hint: for a place of that kind.
    """
    with explained(place):
        try:
            yield
        except AlignError:
            raise
        except OSError as error:
            if system_problem(error, place) is not None:
                raise
            message = f"{error.filename or place}: cannot be written ({error.strerror or error})"
            raise EnvironmentProblem(message, hint=hint) from error


def disk_full(place: Path, needed: int) -> EnvironmentProblem:
    """What to tell before that many bytes are written to a disk that has fewer."""
    return _no_room(errno.ENOSPC, place, needed)


def forbidden(place: Path) -> EnvironmentProblem:
    """What to tell of a file or folder that this user may not read or write."""
    return _forbidden(errno.EACCES, place)


def write_line(descriptor: int, line: bytes) -> None:
    """Write a line at once, so that those of several processes do not mix.

    Raises:
        OSError: if there is no room for all of it. A part of it may be in the file then.
    """
    written = os.write(descriptor, line)
    # On a disk that is almost full, `write` may succeed with a part of the line. The next one says why.
    if written < len(line):
        os.write(descriptor, line[written:])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse_unreadable(path: Path) -> None:
    """Refuse a file whose content is known, but which the stages could not read.

    Raises:
        PermissionError: for a file that this user may not read.
    """
    if not os.access(path, os.R_OK) and path.exists():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def says_nothing_of_the_file(error: OSError) -> bool:
    """Whether a file could not be read for a reason that is not in the file: it may be undamaged."""
    return error.errno in _NOT_OF_THE_FILE


def _found(error: BaseException) -> tuple[int | None, Path | None]:
    """The number that an error has, or one that led to it, and the file that it names."""
    one: BaseException | None = error
    for depth in range(MOST_LINKS):
        if one is None or (depth and isinstance(one, AlignError)):
            break
        number = _number(one)
        # What merely came before may have been dealt with, unless the library could not write either.
        if number in (_KNOWN if depth == 0 or one is error.__cause__ else NO_ROOM):
            named = one.__context__ if isinstance(one, RuntimeError) and number == errno.ELOOP else one
            name = getattr(named, "filename", None)
            return number, Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
        one = one.__cause__ or one.__context__
    return None, None


def _reason_of_torch(place: Path) -> int:
    """Why torch's writer found no room, which says only that it could not write."""
    limit, found = resource.getrlimit(resource.RLIMIT_FSIZE)[0], os.statvfs(_existing(place))
    return errno.EFBIG if 0 <= limit < found.f_bavail * found.f_frsize else errno.ENOSPC


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    text = str(error)
    if isinstance(error, RuntimeError) and text.startswith(_LINK_LOOP):
        return errno.ELOOP
    numbers = [int(next(filter(None, found.groups()))) for found in _NUMBER.finditer(text)]
    if "\n" in text:  # the traceback of another process, in which an error may have been dealt with, but not that of a write
        numbers = [number for number in numbers if number in NO_ROOM]
    return next((number for sign, number in _TEXTS.items() if sign in text), numbers[0] if numbers else None)


def _no_room(number: int, place: Path, needed: int | None) -> EnvironmentProblem:
    needs = "" if needed is None else f"; it needs more than {_size(needed)}"
    if number == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit == resource.RLIM_INFINITY:
            hint = f"Choose a folder on a file system without such a limit. {KEPT}"
            return EnvironmentProblem(f"{place}: the file is too large for its file system{needs}", hint=hint)
        message = f"{place}: a file of this process may have at most {_size(limit)}{needs}"
        return EnvironmentProblem(message, hint=f"Raise the limit with: ulimit -f unlimited. {KEPT}")
    folder = _existing(place)
    found = os.statvfs(folder)
    free = f"; {_size(found.f_bavail * found.f_frsize)} and {found.f_favail:,} inodes are free" if found.f_files else ""
    free = free or f"; {_size(found.f_bavail * found.f_frsize)} are free"
    if number == errno.EDQUOT:
        return EnvironmentProblem(f"{place}: your disk quota is used up{needs}{free}", hint=f"Remove some files of yours. {KEPT}")
    if found.f_files and found.f_favail < FEW_INODES and found.f_bavail * found.f_frsize >= LITTLE_BYTES:
        hint = f"Remove some files, however small, from that file system. {KEPT}"
        return EnvironmentProblem(f"{place}: the file system has no room for another file (no inodes){free}", hint=hint)
    return EnvironmentProblem(f"{place}: the disk is full{needs}{free}", hint=f"Free some space. {KEPT}")


def _forbidden(number: int, place: Path) -> EnvironmentProblem:
    if number == errno.EROFS:
        hint = "Choose another place to write to (--out), or have it mounted for writing."
        return EnvironmentProblem(f"{place}: the file system is read-only", hint=hint)
    culprit = place
    for folder in place.parents:
        # A file is out of reach where a folder above it cannot be entered.
        if not os.access(folder, os.X_OK) and os.path.lexists(folder):
            culprit = folder
    try:
        status = os.stat(culprit if os.path.lexists(culprit) else _existing(culprit))
        owner = f"it belongs to {_user(status.st_uid)}, with the permissions {stat.filemode(status.st_mode)}"
    except OSError:
        owner = "it cannot be looked at"
    about = "" if culprit == place else f", because of {culprit}"
    message = f"{place}: {_user(os.geteuid())} may not read or write it{about}; {owner}"
    return EnvironmentProblem(message, hint="Change its owner or permissions (chown, chmod), or choose another place.")


def _too_many_files(number: int, place: Path) -> EnvironmentProblem:
    if number == errno.ENFILE:
        hint = f"End other programs, or raise fs.file-max. {KEPT}"
        return EnvironmentProblem(f"{place}: too many files are open on this machine", hint=hint)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    message = f"{place}: this process may have {most:,} files open at a time, and needs more"
    return EnvironmentProblem(message, hint=f"Raise the limit with: ulimit -n 65536. {KEPT}")


def _existing(place: Path) -> Path:
    """The place, or the nearest folder above it that is there."""
    return next((path for path in (place, *place.absolute().parents) if os.path.exists(path)), Path("/"))


def _user(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"the user {number}"


def _size(number: int) -> str:
    for unit, bytes_each in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= bytes_each:
            return f"{number / bytes_each:,.1f} {unit}"
    return f"{number:,} bytes"
