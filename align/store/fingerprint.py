"""Hashes of content: they depend on what a file holds, never on its name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from align.runtime.profile import phase
from align.store.atomic import write_json

FINGERPRINT_LENGTH = 16
HASHES_NAME = "hashes.json"
"""The cache of file hashes in a store."""


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, exact floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that name a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:FINGERPRINT_LENGTH]


@phase("hash")
def sha256_of_file(path: Path) -> str:
    """Hexadecimal; a file of any size is read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class FileHashes:
    """sha256 of files, cached by path, size, modification time and inode.

    A model of many gigabytes is read once, not at every command. The cache may be deleted at any time; a file that changed in
    any of the four is read again. A further name of a known file (a hard link) is known too.

    Args:
        path: of the cache. None: nothing is known from earlier commands and nothing is saved, so that a check reads every file.
        trusted: False: every file is read, and what is found replaces what the cache says.
    """

    def __init__(self, path: Path | None, *, trusted: bool = True) -> None:
        self._path = path
        self._known = _read_cache(path) if trusted else {}
        self._paths = {tuple(known[:3]): key for key, known in self._known.items()}
        self._added: dict[str, list[Any]] = {}

    def of(self, path: Path) -> str:
        """sha256 of the file at `path`."""
        status = path.stat()
        # Runs link to the store, so that one file has several paths.
        key = str(path.resolve())
        # The inode shows a file that was replaced by another of the same size and time, as `cp -p` and `rsync -t` make them.
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known.get(key)
        if known is not None and known[:3] == state:
            return str(known[3])
        other = self._paths.setdefault(tuple(state), key)
        digest = str(self._known[other][3]) if other != key and _same_file(other, key) else sha256_of_file(path)
        self._known[key] = self._added[key] = [*state, digest]
        return digest

    def save(self) -> None:
        """Add what is new to the cache on disk, and remove files that no longer exist."""
        if self._added and self._path is not None:
            # Read again: other processes have added theirs since. Two that save at the same moment may lose some of them, and
            # hash those files again; no hash becomes wrong.
            known = {**_read_cache(self._path), **self._added}
            write_json(self._path, {key: value for key, value in sorted(known.items()) if Path(key).exists()})
            self._added = {}


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _read_cache(path: Path | None) -> dict[str, list[Any]]:
    """Size, modification time, inode and sha256 by path. An unreadable cache is no error: the files are then hashed again."""
    try:
        loaded = json.loads(path.read_text()) if path is not None else {}
        return {key: value for key, value in loaded.items() if isinstance(value, list) and len(value) == 4}
    except (OSError, ValueError, AttributeError):
        return {}
