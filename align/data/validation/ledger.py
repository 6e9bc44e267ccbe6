"""Which rows have a key in common: hashes of all rows on disk, resolved partition by partition, so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

Table = npt.NDArray[Any]
"""A structured array; every ledger's has `key` (64-bit hash) and `seq` (number of the row, from 0)."""

ROWS_IN_MEMORY = 200_000
"""A ledger with fewer rows writes no file."""
PARTITIONS = 64
"""Files per ledger; equal keys meet in one. With 5 million rows one holds about 80,000."""

hash_bytes = xxhash.xxh3_64_intdigest
"""64-bit hash, the same in every process. Among 5 million rows, two differing ones share it with a probability of 1e-6."""


def hash_text(text: str) -> int:
    """The hash of a text; half a surrogate pair is hashed as it stands."""
    return hash_bytes(text.encode("utf-8", "surrogatepass"))


class Ledger:
    """Entries of all rows by key.

    Args:
        dtype: of the entries; it has `key` and `seq`.
        folder: existing folder for the partition files, which are removed by whoever made the folder.
        name: begins the files' names.
    """

    def __init__(self, dtype: np.dtype[Any], folder: Path, name: str, *, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        self._dtype = dtype
        self._prefix = folder / name
        self._limit = rows_in_memory
        self._waiting: list[Table] = []
        self._rows_waiting = 0
        self._files: list[Path] = []

    def add(self, entries: Table) -> None:
        """Take entries, in any number."""
        if not len(entries):
            return
        self._waiting.append(entries)
        self._rows_waiting += len(entries)
        if self._rows_waiting > self._limit:
            self._spill()

    def partitions(self) -> Iterator[Table]:
        """All entries, equal keys in one table, each table sorted by key and within it by seq. To be asked for once."""
        if not self._files:
            if self._waiting:
                yield self._sorted(np.concatenate(self._waiting))
            return
        self._spill()
        for path in self._files:
            yield self._sorted(np.fromfile(path, dtype=self._dtype))
            path.unlink()

    def _sorted(self, entries: Table) -> Table:
        ordered: Table = entries[np.lexsort((entries["seq"], entries["key"]))]
        return ordered

    def _spill(self) -> None:
        """Append what is waiting to the files. They are not kept open: there may be many ledgers."""
        if not self._files:
            self._files = [Path(f"{self._prefix}-{number:02d}") for number in range(PARTITIONS)]
            for path in self._files:
                path.touch()
        if not self._waiting:
            return
        entries = np.concatenate(self._waiting)
        self._waiting, self._rows_waiting = [], 0
        # The low bits of the key choose the file; sorting by them makes one contiguous piece per file.
        part = (entries["key"] % np.uint64(PARTITIONS)).astype(np.uint8)
        entries = entries[np.argsort(part, kind="stable")]
        ends = np.cumsum(np.bincount(part, minlength=PARTITIONS))
        for path, piece in zip(self._files, np.split(entries, ends[:-1]), strict=True):
            with path.open("ab") as stream:
                stream.write(piece.tobytes())


def with_company(table: Table) -> Table:
    """The entries of a sorted table whose key others have too."""
    starts = starts_of(table["key"])
    alone = starts & np.append(starts[1:], True)
    company: Table = table[~alone]
    return company


def starts_of(*columns: Table) -> npt.NDArray[np.bool_]:
    """True where a new group begins, in columns that are sorted so that equal entries are neighbours."""
    size = len(columns[0])
    new = np.ones(size, dtype=np.bool_)
    if size:
        new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new
