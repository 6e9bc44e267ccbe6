"""Finds rows that repeat or contradict each other, by hashes. The hashes are on disk, so memory does not grow with the rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

Table = npt.NDArray[Any]
"""A structured array; an index's has `key` (64-bit hash) and `seq` (number of the row, from 0)."""
Indexes = npt.NDArray[np.intp]

ROWS_IN_MEMORY = 200_000
"""An index of fewer rows writes no file."""
PARTITIONS = 64
"""Files per index; equal keys meet in one. With 5 million rows a file holds about 80,000."""

hash_bytes = xxhash.xxh3_64_intdigest
"""64-bit hash, the same in every process. Among 5 million rows, two differing ones share it with a probability of 1e-6."""


def hash_text(text: str) -> int:
    """The hash of a text; half a surrogate pair is hashed like any character."""
    return hash_bytes(text.encode("utf-8", "surrogatepass"))


class DuplicateIndex:
    """Entries of all rows by key.

    Args:
        dtype: of the entries; it has `key` and `seq`.
        folder: existing folder for the partition files; the caller removes it.
        name: prefix of the files' names.
    """

    def __init__(self, dtype: np.dtype[Any], folder: Path, name: str, *, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        self._dtype = dtype
        self._prefix = folder / name
        self._limit = rows_in_memory
        self._waiting = [np.empty(0, dtype)]
        self._files: list[Path] = []

    def add(self, entries: Table) -> None:
        """Add any number of entries."""
        self._waiting.append(entries)
        if sum(map(len, self._waiting)) > self._limit:
            self._write()

    def duplicates(self) -> Iterator[Table]:
        """Entries that share their key with another: equal keys in one table, sorted by key, then seq. Call it once."""
        if not self._files:
            yield _duplicates(np.concatenate(self._waiting))
            return
        self._write()
        for path in self._files:
            yield _duplicates(np.fromfile(path, dtype=self._dtype))
            path.unlink()

    def _write(self) -> None:
        """Append the entries in memory to the files, which are closed again: many indexes would need too many open files."""
        if not self._files:
            self._files = [Path(f"{self._prefix}-{number:02d}") for number in range(PARTITIONS)]
        entries = np.concatenate(self._waiting)
        self._waiting = [np.empty(0, self._dtype)]
        # The low bits of the key choose the file; sorting by them makes one contiguous piece per file.
        part = (entries["key"] % np.uint64(PARTITIONS)).astype(np.uint8)
        entries = entries[np.argsort(part, kind="stable")]
        ends = np.cumsum(np.bincount(part, minlength=PARTITIONS))
        for path, piece in zip(self._files, np.split(entries, ends[:-1]), strict=True):
            with path.open("ab") as stream:
                stream.write(piece.tobytes())


def _duplicates(entries: Table) -> Table:
    """The entries whose key occurs more than once, sorted by key, then seq."""
    ordered: Table = entries[np.lexsort((entries["seq"], entries["key"]))]
    starts = _starts(ordered["key"])
    # A row is alone in its group where one group starts at it and another right after it.
    unique = starts & np.append(starts[1:], True)
    duplicates: Table = ordered[~unique]
    return duplicates


@dataclass(frozen=True)
class Matches:
    """Rows of a table that repeat or contradict another one."""

    rows: Indexes
    """The rows concerned: they are dropped if the check's action is drop."""
    others: Indexes
    """For each, the row that it repeats or contradicts."""
    counted: Indexes
    """One row per occurrence: it is counted, and its line is shown."""


def repetitions(table: Table, *columns: str) -> Matches:
    """Every row that equals an earlier row in `columns`; its other is the first such row."""
    order, group = _grouped(table, columns)
    starts = _starts(group)
    later = np.flatnonzero(~starts)
    rows, others = order[later], order[np.flatnonzero(starts)][group[later]]
    return Matches(rows, others, rows)


def contradictions(table: Table, columns: tuple[str, ...], value: str) -> Matches:
    """All rows of every group that is equal in `columns` but not in `value`. A group counts once.

    The row that counts is the first that differs from the group's first row. A row's other is the first row that differs from it.
    """
    order, group = _grouped(table, columns)
    values = table[value][order]
    starts = np.flatnonzero(_starts(group))
    # Rows of a group are neighbours here, so `starts[group]` is the first row of each row's group.
    differs = values != values[starts][group]
    # np.unique gives the first index of each group: the first row that differs from the group's first.
    groups, first_differing = np.unique(group[differs], return_index=True)
    differing = np.flatnonzero(differs)[first_differing]
    concerned = np.flatnonzero(np.isin(group, groups))
    of_group = np.searchsorted(groups, group[concerned])
    others = np.where(differs[concerned], starts[groups][of_group], differing[of_group])
    return Matches(order[concerned], order[others], order[differing])


def mirrored(table: Table) -> Matches:
    """Pairs that occur in both orders; see `contradictions`. The table has `key`, `first` (chosen) and `second` (rejected)."""
    pairs = np.empty(len(table), [("key", "u8"), ("low", "u8"), ("high", "u8"), ("way", "?"), ("seq", "u8")])
    pairs["key"], pairs["seq"] = table["key"], table["seq"]
    # Both orders of a pair have the same low and high; `way` says which of the two was chosen.
    pairs["low"] = np.minimum(table["first"], table["second"])
    pairs["high"] = np.maximum(table["first"], table["second"])
    pairs["way"] = table["first"] < table["second"]
    return contradictions(pairs, ("key", "low", "high"), "way")


def _grouped(table: Table, columns: tuple[str, ...]) -> tuple[Indexes, Indexes]:
    """Row indexes in the order of `columns` and seq, and for each the number of its group from 0."""
    keys = [table[name] for name in columns]
    # lexsort sorts by its last array first; seq, the first array, only decides between equal keys.
    order = np.lexsort([table["seq"], *reversed(keys)])
    return order, np.cumsum(_starts(*(key[order] for key in keys))) - 1


def _starts(*columns: Table) -> npt.NDArray[np.bool_]:
    """True where a new group begins, in columns that are sorted so that equal entries are neighbours."""
    new = np.ones(len(columns[0]), dtype=np.bool_)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new


def table_of(entries: array[int], dtype: np.dtype[Any]) -> Table:
    """A flat array of entries as a structured array."""
    names = dtype.names or ()
    columns = np.frombuffer(entries, dtype=np.uint64).reshape(-1, len(names)) if len(entries) else np.empty((0, len(names)))
    table = np.empty(len(columns), dtype)
    for number, name in enumerate(names):
        table[name] = columns[:, number]
    return table
