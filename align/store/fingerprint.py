"""Hashes of content: they depend on what a file holds, never on its name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

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


def sha256_of_file(path: Path) -> str:
    """Hexadecimal; a file of any size is read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class FileHashes:
    """sha256 of files, cached by path, size, modification time and inode.

    A model of many gigabytes is read once, not at every command. The cache may be deleted at any time; a file that changed in
    any of the four is read again.

    Args:
        path: of the cache. None: nothing is known from earlier commands and nothing is saved, so that a check reads every file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if path is None:
            return
        try:
            # An unreadable cache is no error: the files are then hashed again.
            loaded = json.loads(path.read_text())
            self._known = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError):
            pass

    def of(self, path: Path) -> str:
        """sha256 of the file at `path`."""
        status = path.stat()
        # Runs link to the store, so that one file has several paths.
        key = str(path.resolve())
        # The inode shows a file that was replaced by another of the same size and time, as `cp -p` and `rsync -t` make them.
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known.get(key)
        if isinstance(known, list) and known[:3] == state:
            return str(known[3])
        digest = sha256_of_file(path)
        self._known[key] = [*state, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Write the cache to disk, without files that no longer exist."""
        # Two commands that end together may lose each other's additions. They hash those files again; no hash becomes wrong.
        if self._changed and self._path is not None:
            write_json(self._path, {key: value for key, value in sorted(self._known.items()) if Path(key).exists()})
            self._changed = False
