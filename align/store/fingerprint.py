"""Hashes of content: they depend on what a file holds, never on its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from align.runtime.plain_file import open_plain, read_small_file
from align.runtime.profile import phase
from align.runtime.threads import usable_cores
from align.store.atomic import link_tree, write_json

FINGERPRINT_LENGTH = 16
HASHES_NAME = "hashes.json"
"""The cache of file hashes in a store."""
BLOCK_BYTES = 1 << 20
MOST_READERS = 8
"""Files that are read for their hash at the same time, at most."""


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, exact floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of_json(value: Any) -> str:
    """Hexadecimal, of a JSON value, however it is written."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that name a JSON value."""
    return sha256_of_json(value)[:FINGERPRINT_LENGTH]


@phase("hash")
def sha256_of_file(path: Path) -> str:
    """Hexadecimal; a file of any size is read in pieces."""
    digest = hashlib.sha256()
    with open_plain(path, buffering=0) as stream:
        # A block is filled with zeros first, which takes longer than a small file.
        block = memoryview(bytearray(min(BLOCK_BYTES, os.fstat(stream.fileno()).st_size + 1)))
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # reads further ahead
        while size := stream.readinto(block):  # type: ignore[attr-defined]
            digest.update(block[:size])
    return digest.hexdigest()


class FileState(NamedTuple):
    """What changes when a file changes, as far as the file system tells without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    """Of the last change of content, names or permissions. No program can set it, unlike the modification time."""
    inode: int
    """Shows a file that was replaced by another of the same size and times."""

    def is_touched(self, before: FileState) -> bool:
        """Whether nothing but names and permissions can have changed since `before`."""
        return self._replace(ctime_ns=before.ctime_ns) == before


def _state(path: Path) -> FileState:
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class FileHashes:
    """sha256 of files, cached by path, size, both times and inode.

    A plan reads a large model once, not at every command. The cache may be deleted at any time; a file that changed in any of
    the five is read again. A further name of a known file (a hard link) is known too. Damage that the file system does not know
    of is found by `read` alone.

    Args:
        path: of the cache. None: nothing is known from earlier commands and nothing is saved.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = _read_cache(path)
        self._names = {state: key for key, (state, _) in self._known.items()}
        self._added: dict[str, tuple[FileState, str]] = {}

    def of(self, path: Path) -> str:
        """sha256 of the file at `path`."""
        key, state = str(path.resolve()), _state(path)  # runs link to the store, so that one file has several paths
        digest = self._digest(key, state)
        if digest is None:
            digest = sha256_of_file(path)
        self._remember(key, state, digest)
        return digest

    @phase("hash")
    def read(self, paths: Iterable[Path], *, again: bool = False) -> None:
        """Read files that are not known, several at once; with `again` all of them, and what is found replaces what is known.

        A file with several names is read once. Paths without a file are left out.
        """
        names: dict[tuple[int, int], list[Path]] = {}
        for path in paths:
            if path.is_file():
                status = path.stat()
                names.setdefault((status.st_dev, status.st_ino), []).append(path)
        # The largest first, so that none of them is read alone at the end.
        files = sorted(names.values(), key=lambda same: -same[0].stat().st_size)
        if not again:
            files = [same for same in files if self._digest(str(same[0].resolve()), _state(same[0])) is None]
        states = [_state(same[0]) for same in files]
        for same, state, digest in zip(files, states, _each(sha256_of_file, [same[0] for same in files]), strict=True):
            for path in same:
                self._remember(str(path.resolve()), state, digest)

    @contextmanager
    def touching(self, paths: Iterable[Path]) -> Iterator[None]:
        """Inside, align itself gives files other names or permissions: what was known of them before is known afterwards."""
        before = []
        for path in paths:
            key, state = str(path.resolve()), _state(path)
            if (digest := self._digest(key, state)) is not None:
                before.append((path, key, state, digest))
        yield
        for path, key, state, digest in before:
            if path.exists() and (now := _state(path)).is_touched(state):
                self._remember(key, now, digest)

    def link_tree(self, source: Path, target: Path) -> None:
        """`align.store.atomic.link_tree`, after which the hashes of `source` are still known. Saves them."""
        with self.touching([path for path in source.rglob("*") if path.is_file()]):
            link_tree(source, target)
        self.save()

    def names_of(self, files: Iterable[tuple[int, int]]) -> list[Path]:
        """Known paths of files that are given by device and inode."""
        wanted = set(files)
        inodes = {inode for _, inode in wanted}
        found = []
        for key, (state, _) in self._known.items():
            if state.inode in inodes and os.path.exists(key):
                status = os.stat(key)
                found += [Path(key)] if (status.st_dev, status.st_ino) in wanted else []
        return found

    def save(self) -> None:
        """Add what is new to the cache on disk, and remove files that no longer exist."""
        if self._added and self._path is not None:
            # Read again: other processes have added theirs since. Two that save at the same moment may lose some of them, and
            # hash those files again; no hash becomes wrong.
            known = {**_read_cache(self._path), **self._added}
            kept = {key: [*state, digest] for key, (state, digest) in sorted(known.items()) if os.path.exists(key)}
            with suppress(OSError):  # where the store cannot be written to, the files are hashed again
                write_json(self._path, {"files": kept, "seal": sha256_of_json(kept)})
            self._added = {}

    def _digest(self, key: str, state: FileState) -> str | None:
        """What is known of the file in this state, under this name or another; None if nothing is."""
        if (known := self._known.get(key)) is not None and known[0] == state:
            return known[1]
        other = self._known.get(name := self._names.get(state, key))
        return other[1] if other is not None and other[0] == state and _same_file(name, key) else None

    def _remember(self, key: str, state: FileState, digest: str) -> None:
        if self._known.get(key) == (state, digest):
            return
        # The file was read and has other content than its state said: that is true of all its names.
        for name, known in self._known.items():
            if known[0] == state and known[1] != digest and _same_file(name, key):
                self._known[name] = self._added[name] = (state, digest)
        self._known[key] = self._added[key] = (state, digest)
        self._names[state] = key


def _each(read: Callable[[Path], str], paths: list[Path]) -> list[str]:
    readers = min(len(paths), usable_cores(), MOST_READERS)
    if readers < 2:
        return [read(path) for path in paths]
    from concurrent.futures import ThreadPoolExecutor  # most plans read nothing

    with ThreadPoolExecutor(readers) as pool:  # hashlib works beside other threads
        return list(pool.map(read, paths))


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _read_cache(path: Path | None) -> dict[str, tuple[FileState, str]]:
    """State and sha256 by path. A cache that is damaged, or of an earlier version, is no error: the files are hashed again."""
    if path is None:
        return {}
    try:
        loaded = json.loads(read_small_file(path))
        # A digit that flipped in it would call a whole file damaged, or a base model another one.
        if loaded["seal"] != sha256_of_json(loaded["files"]):
            return {}
        known = {key: (FileState(*state), digest) for key, (*state, digest) in loaded["files"].items()}
        is_whole = all(isinstance(digest, str) and all(type(part) is int for part in state) for state, digest in known.values())
        return known if is_whole else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
