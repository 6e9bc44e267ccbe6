"""One folder for the temporary files of a run: sockets of vLLM and multiprocessing, files of torch and of libraries.

It is removed when the process of the run ends. One whose process was killed is removed by the next run of the same user.
"""

from __future__ import annotations

import fcntl
import getpass
import multiprocessing.process
import multiprocessing.util
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

PREFIX = "align-run-"
LOCK_NAME = "lock"
"""File in the folder that its process holds a lock on."""


@cache
def temporary_folder() -> Path:
    """The folder of this process.

    Raises:
        OSError: if it cannot be made.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            _remove_if_abandoned(old)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    # Until the process ends, however it ends; no other process has the descriptor. Locked before it has its name.
    fcntl.flock(os.open(folder / f".{LOCK_NAME}", os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)
    os.rename(folder / f".{LOCK_NAME}", folder / LOCK_NAME)
    # Else the sockets of the fork server would have a folder of their own, which a kill leaves behind.
    settings = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    settings.setdefault("tempdir", str(folder))  # and not one inside: a socket's path has at most 107 bytes
    # Behind multiprocessing's own, which remove their sockets. Not in a fork of this process.
    multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
    return folder


def temporary_environment() -> dict[str, str]:
    """Variables that lead a process and its libraries to the folder."""
    # torch keeps what it compiled in the folder for temporary files, for later runs.
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has no name
        name = str(os.geteuid())
    user = "".join(letter if letter.isalnum() else "_" for letter in name)
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"torchinductor_{user}"))
    return {"TMPDIR": str(temporary_folder()), "TORCHINDUCTOR_CACHE_DIR": compiled}


def _remove_if_abandoned(folder: Path) -> None:
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.geteuid():
        return  # another user's, or somebody's trap
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)
