"""Rows of a JSON Lines file that are read when they are asked for: a million of them as objects take gigabytes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, SupportsIndex, TypeVar, overload

import numpy as np
from pydantic import BaseModel

CHUNK_BYTES = 1 << 24

RecordT = TypeVar("RecordT", bound=BaseModel)


class RowFile(Sequence[RecordT], Generic[RecordT]):
    """The rows of a file that `align.store.artifact.write_rows` wrote, in its order. It keeps 8 bytes for each."""

    def __init__(self, path: Path, record_type: type[RecordT]) -> None:
        self.path = path
        self._record_type = record_type
        self.starts = _line_starts(path)
        """Where each row begins, in bytes, and the end of the last one: int64, [rows + 1]."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> RecordT: ...
    @overload
    def __getitem__(self, index: slice) -> list[RecordT]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> RecordT | list[RecordT]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[operator.index(index)]
        return next(read_lines(self.path, self._record_type, start=int(self.starts[place]), count=1))

    def __iter__(self) -> Iterator[RecordT]:
        return read_lines(self.path, self._record_type, start=0, count=len(self))


def read_lines(path: Path, record_type: type[RecordT], *, start: int, count: int) -> Iterator[RecordT]:
    """Rows of a file from the line that begins at byte `start`."""
    with path.open("rb") as stream:
        stream.seek(start)
        for _, line in zip(range(count), stream, strict=False):
            yield record_type.model_validate_json(line)


def _line_starts(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    found, size = [np.zeros(1, dtype=np.int64)], 0
    last = b"\n"
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            found.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + size + 1)
            size, last = size + len(chunk), chunk[-1:]
    if last != b"\n":
        found.append(np.array([size], dtype=np.int64))
    return np.concatenate(found)
