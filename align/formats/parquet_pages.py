"""How many rows of a Parquet file may be read at a time: a file made to fill the memory is refused before it is unpacked.

pyarrow unpacks whole pages, and decodes as many rows as it is asked for, whatever they hold; it has no limit of its own. The
headers of pages say how large they will be. What they do not say is how many values a row of a list has: a page of a few bytes
may hold a billion equal ones. So the levels that tell where rows begin are decoded here, in files that have so many values.
"""

from __future__ import annotations

import io
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from align.formats.parquet_footer import ColumnChunk, RowGroup
from align.formats.raw import MAX_LINE_BYTES
from align.formats.thrift import Wanted, number_of, read_struct, varint
from align.formats.unpacked import TooLarge

if TYPE_CHECKING:
    import pyarrow

MAX_PAGE_BYTES = 4 * MAX_LINE_BYTES
"""Unpacked, of the pages that are held at the same time, one of every column. Writers begin a new page after about 1 MB, but look
at its size after a thousand values only."""
MAX_BATCH_BYTES = MAX_LINE_BYTES
"""That the rows of a batch may take, unless a single one takes more. pyarrow needs about three times as much."""
MAX_BATCH_VALUES = MAX_LINE_BYTES // 8
"""Values of one column in the rows of a batch."""
_DICTIONARY_PAGE = 2
_KIND: Wanted = {1: None, 4: None, 6: None}
_HEADER: Wanted = {1: None, 2: None, 3: None, 5: _KIND, 7: _KIND, 8: _KIND}
"""Fields of a page's header: its kind, its bytes unpacked and packed, and one of the three kinds that have values."""
_PREFIXES = 7
"""The encoding in which a value may begin as the one before it."""
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
"""By their numbers in a footer, as pyarrow calls them. 5, an older form of LZ4, is missing: pyarrow cannot unpack it alone."""
_UNPACKED_BYTES = 1 << 20
"""Of packed levels, unpacked at a time: a bit becomes a byte."""
_RLE = 3
"""The one encoding of levels that writers have used in the last ten years."""


def group_batch_rows(
    path: Path,
    groups: Iterable[RowGroup],
    schema: pyarrow.parquet.ParquetSchema,
    most: int,
    *,
    columns: Container[str] | None = None,
) -> Iterator[int]:
    """How many rows of each row group may be read at a time, at most `most`.

    Args:
        columns: those that are read, by the names at the top of the schema; default: all.
    Raises:
        TooLarge: if pages unpack to more than `MAX_PAGE_BYTES`, or a row has more than `MAX_BATCH_VALUES` values.
        EOFError: at a row group with a page whose header cannot be read.
    """
    with path.open("rb") as file:
        places = list(_places(schema, columns))
        for group in groups:
            if places and len(group.columns) <= places[-1]:
                raise EOFError(f"a row group has {len(group.columns)} columns, fewer than the schema")
            found = [_look_at(file, group.columns[place], schema.column(place), group.num_rows) for place in places]
            if (pages := sum(column.page_bytes for column in found)) > MAX_PAGE_BYTES:
                raise TooLarge(f"its pages unpack to {pages:,} bytes")
            bytes_each = sum(column.row_bytes for column in found)
            fitting = min([MAX_BATCH_BYTES / max(1.0, bytes_each), *(column.most_rows for column in found), most])
            yield max(1, int(fitting))


def _places(schema: pyarrow.parquet.ParquetSchema, columns: Container[str] | None) -> Iterator[int]:
    """Numbers of the columns as Parquet counts them: every field inside a column is one."""
    wanted = [name for name in schema.to_arrow_schema().names if columns is None or name in columns]
    for place in range(len(schema)):
        path = schema.column(place).path
        # A name may have dots itself.
        if columns is None or any(path == name or path.startswith(f"{name}.") for name in wanted):
            yield place


@dataclass(frozen=True)
class _Column:
    """What may be needed for one column's chunk."""

    page_bytes: int
    """Largest page."""
    row_bytes: float
    """A row at most, or where nothing says that: on average, in the page where they are largest."""
    most_rows: float
    """By the number of values in a row."""


def _look_at(file: IO[bytes], column: ColumnChunk, description: Any, num_rows: int) -> _Column:
    is_fixed = description.physical_type == "FIXED_LEN_BYTE_ARRAY"
    fixed = float(description.length) if is_fixed else 0.0  # a null takes as much
    has_prefixes, is_nested = _PREFIXES in column.encodings, description.max_repetition_level > 0
    largest = values = repeated = 0
    each = 0.0
    for page in _pages(file, column):
        if page.size > MAX_PAGE_BYTES:
            raise TooLarge(f"a page of the column {description.path} unpacks to {page.size:,} bytes")
        largest = max(largest, page.size)
        if page.kind == _DICTIONARY_PAGE or has_prefixes:
            repeated = max(repeated, page.size)  # few bytes can repeat its largest value in every row
        if page.kind != _DICTIONARY_PAGE:
            values += page.values
            each = max(each, page.size / max(1, page.values))
    in_a_row = max(1.0, values / max(1, num_rows)) if is_nested else 1.0
    most_rows = MAX_BATCH_VALUES / in_a_row
    if is_nested and values > MAX_BATCH_VALUES:
        longest = _longest_row(file, column, description)
        if longest > MAX_BATCH_VALUES:
            raise TooLarge(f"a row of the column {description.path} has {longest:,} values")
        most_rows = MAX_BATCH_VALUES / max(1, longest)
    return _Column(largest, max(fixed, repeated, each) * in_a_row, most_rows)


@dataclass(frozen=True)
class _Page:
    """What the header of a page says."""

    kind: int
    size: int
    """Unpacked, in bytes."""
    values: int
    """Nulls and empty lists included."""
    place: int
    """Of its content in the file."""
    packed: int
    """Bytes of its content in the file."""
    header: dict[int, Any]
    """Of its kind, by the number of the field."""
    is_second: bool
    """Of the format's second version of a page with values."""


def _pages(file: IO[bytes], column: ColumnChunk) -> Iterator[_Page]:
    """The pages of a column's chunk.

    Raises:
        EOFError: at a header that cannot be read, of which pyarrow may make something else.
    """
    place, end, file_end = column.place, column.place + column.packed_bytes, file.seek(0, io.SEEK_END)
    while place < end:
        file.seek(place)
        header = read_struct(file, _HEADER)
        place = file.tell()
        kind, unpacked, packed = (number_of(header, field) for field in (1, 2, 3))
        if place + packed > file_end:  # pyarrow would take the memory for it first
            raise EOFError(f"a page of {packed:,} bytes is longer than the file")
        own = next((found for field in (5, 7, 8) if isinstance(found := header.get(field), dict)), {})
        yield _Page(kind, unpacked, number_of(own, 1, 0), place, packed, own, is_second=8 in header)
        place += packed


def _longest_row(file: IO[bytes], column: ColumnChunk, description: Any) -> int:
    """Most values of a row in a column of lists.

    Raises:
        TooLarge: if that cannot be told.
    """
    longest = current = 0
    width = description.max_repetition_level.bit_length()
    for page in _pages(file, column):
        if page.kind == _DICTIONARY_PAGE:
            continue
        left = page.values
        for levels, count in _levels(_level_bytes(file, column, page), width):
            count = min(count, left)
            left -= count
            if isinstance(levels, int):  # of all of them
                longest, current = (max(longest, current, 1), 1) if levels == 0 else (longest, current + count)
                continue
            starts = (levels[:count] == 0).nonzero()[0]
            if len(starts) == 0:
                current += count
                continue
            longest = max(longest, current + int(starts[0]), int((starts[1:] - starts[:-1]).max(initial=0)))
            current = count - int(starts[-1])
        if left:
            raise TooLarge(f"it cannot be told where the rows of the column {description.path} begin")
    return max(longest, current)


def _level_bytes(file: IO[bytes], column: ColumnChunk, page: _Page) -> bytes:
    """The repetition levels of a page, as they are encoded; empty if it is not known how."""
    import pyarrow

    file.seek(page.place)
    content = file.read(page.packed)
    if page.is_second:
        return content[: number_of(page.header, 6)]  # in front, and never compressed
    if page.header.get(4) != _RLE:
        return b""
    if column.codec:
        try:
            content = pyarrow.decompress(content, decompressed_size=page.size, codec=_CODECS[column.codec], asbytes=True)
        except (pyarrow.ArrowException, OSError, ValueError, KeyError):
            return b""
    return content[4 : 4 + int.from_bytes(content[:4], "little")]


def _levels(encoded: bytes, width: int) -> Iterator[tuple[Any, int]]:
    """Levels in the hybrid of runs and packed bits: one level or an array of them, and how many there are.

    Args:
        width: bits of a level.
    """
    import numpy as np

    stream, width_bytes = io.BytesIO(encoded), (width + 7) // 8
    while stream.tell() < len(encoded):
        try:
            head = varint(stream)
        except EOFError:
            return
        count = head >> 1
        if not head & 1:
            yield int.from_bytes(stream.read(width_bytes), "little"), count
            continue
        left = min(count * width, len(encoded) - stream.tell())
        while left >= width:
            packed = np.frombuffer(stream.read(min(left, _UNPACKED_BYTES * width)), dtype=np.uint8)
            left -= len(packed)
            bits = np.unpackbits(packed, bitorder="little")
            levels = bits[: len(bits) // width * width].reshape(-1, width).max(1)
            yield levels, len(levels)
