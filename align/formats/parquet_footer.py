"""Where the columns of a Parquet file are, read from its footer.

Read here and not by pyarrow: its objects for row groups and columns end the process where a column's description is wrong.
Numbers of fields and their meaning: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

from align.formats.thrift import Wanted, number_of, read_struct

_END = b"PAR1"
_COLUMN: Wanted = {3: {2: None, 4: None, 7: None, 9: None, 11: None}}
_FOOTER: Wanted = {4: {1: _COLUMN, 3: None}}


class ColumnChunk(NamedTuple):
    """A column's part of a row group."""

    place: int
    """Of its first page in the file."""
    packed_bytes: int
    """Of all its pages in the file."""
    codec: int
    encodings: tuple[int, ...]


class RowGroup(NamedTuple):
    """Rows that are stored together."""

    num_rows: int
    columns: tuple[ColumnChunk, ...]
    """In the order of the schema, in which every field inside a column counts as one."""


def read_row_groups(path: Path) -> list[RowGroup]:
    """The row groups of a file.

    Raises:
        EOFError: if the footer cannot be read.
    """
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - 8))
        tail = file.read()
        place = end - 8 - int.from_bytes(tail[:4], "little")
        if tail[4:] != _END or place < 0:
            raise EOFError("the file has no footer")
        file.seek(place)
        groups = read_struct(file, _FOOTER).get(4)
    return [_row_group(group) for group in _structs(groups)]


def _row_group(group: dict[int, object]) -> RowGroup:
    return RowGroup(number_of(group, 3), tuple(_column(column.get(3)) for column in _structs(group.get(1))))


def _column(described: object) -> ColumnChunk:
    if not isinstance(described, dict):
        raise EOFError("a column has no description in the footer")
    encodings = described.get(2)
    if not isinstance(encodings, list):
        raise EOFError("a column has no encodings in the footer")
    starts = [number_of(described, 9), number_of(described, 11, 0)]
    place = min([start for start in starts if start], default=0)
    return ColumnChunk(place, number_of(described, 7), number_of(described, 4), tuple(encodings))


def _structs(value: object) -> list[dict[int, object]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise EOFError("the footer has no list of row groups with columns")
    return value
