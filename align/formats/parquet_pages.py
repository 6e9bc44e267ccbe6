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

from align.formats.raw import MAX_LINE_BYTES
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
# Of Thrift's compact protocol, in which page headers are written.
_VARINTS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (3, 4, 5, 6), 7, 8, (9, 10), 12
_MAX_HEADER_BYTES = 1 << 24
_UNPACKED_BYTES = 1 << 20
"""Of packed levels, unpacked at a time: a bit becomes a byte."""
_RLE = 3
"""The one encoding of levels that writers have used in the last ten years."""


def group_batch_rows(
    path: Path,
    metadata: pyarrow.parquet.FileMetaData,
    most: int,
    *,
    groups: Iterable[int] | None = None,
    columns: Container[str] | None = None,
) -> Iterator[int]:
    """How many rows of each row group may be read at a time, at most `most`.

    Args:
        groups: numbers of the row groups; default: all.
        columns: those that are read, by the names at the top of the schema; default: all.
    Raises:
        TooLarge: if pages unpack to more than `MAX_PAGE_BYTES`, or a row has more than `MAX_BATCH_VALUES` values.
        EOFError: at a row group with a page whose header cannot be read.
    """
    with path.open("rb") as file:
        places = list(_places(metadata, columns))
        for number in range(metadata.num_row_groups) if groups is None else groups:
            group = metadata.row_group(number)
            found = [_look_at(file, group.column(place), metadata.schema.column(place), group.num_rows) for place in places]
            if (pages := sum(column.page_bytes for column in found)) > MAX_PAGE_BYTES:
                raise TooLarge(f"its pages unpack to {pages:,} bytes")
            bytes_each = sum(column.row_bytes for column in found)
            fitting = min([MAX_BATCH_BYTES / max(1.0, bytes_each), *(column.most_rows for column in found), most])
            yield max(1, int(fitting))


def _places(metadata: pyarrow.parquet.FileMetaData, columns: Container[str] | None) -> Iterator[int]:
    """Numbers of the columns as Parquet counts them: every field inside a column is one."""
    wanted = [name for name in metadata.schema.to_arrow_schema().names if columns is None or name in columns]
    for place in range(metadata.num_columns):
        path = metadata.schema.column(place).path
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


def _look_at(file: IO[bytes], column: Any, description: Any, num_rows: int) -> _Column:
    is_fixed = description.physical_type == "FIXED_LEN_BYTE_ARRAY"
    fixed = float(description.length) if is_fixed else 0.0  # a null takes as much
    has_prefixes, is_nested = "DELTA_BYTE_ARRAY" in column.encodings, description.max_repetition_level > 0
    largest = values = repeated = 0
    each = 0.0
    for page in _pages(file, column):
        if page.size > MAX_PAGE_BYTES:
            raise TooLarge(f"a page of the column {column.path_in_schema} unpacks to {page.size:,} bytes")
        largest = max(largest, page.size)
        if page.kind == _DICTIONARY_PAGE or has_prefixes:
            repeated = max(repeated, page.size)  # few bytes can repeat its largest value in every row
        if page.kind != _DICTIONARY_PAGE:
            values += page.values
            each = max(each, page.size / max(1, page.values))
    in_a_row = max(1.0, values / max(1, num_rows)) if is_nested else 1.0
    most_rows = MAX_BATCH_VALUES / in_a_row
    if is_nested and values > MAX_BATCH_VALUES:
        longest = _longest_row(file, column, description.max_repetition_level)
        if longest > MAX_BATCH_VALUES:
            raise TooLarge(f"a row of the column {column.path_in_schema} has {longest:,} values")
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


def _pages(file: IO[bytes], column: Any) -> Iterator[_Page]:
    """The pages of a column's chunk.

    Raises:
        EOFError: at a header that cannot be read, of which pyarrow may make something else.
    """
    starts = [column.dictionary_page_offset, column.data_page_offset]
    place = min(start for start in starts if start)
    end = place + column.total_compressed_size
    while place < end:
        file.seek(place)
        try:
            header = _read_struct(file)
        except RecursionError:
            raise EOFError("structs in structs without end") from None
        place = file.tell()
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        own = next((found for field in (5, 7, 8) if isinstance(found := header.get(field), dict)), {})
        yield _Page(kind, unpacked, _number(own, 1, 0), place, packed, own, is_second=8 in header)
        place += packed


def _number(header: dict[int, Any], field: int, default: int | None = None) -> int:
    """A number of a header, 0 or more."""
    number = header.get(field, default)
    if not isinstance(number, int) or number < 0:
        raise EOFError(f"a page's header has {number!r} as field {field}")
    return number


def _longest_row(file: IO[bytes], column: Any, max_level: int) -> int:
    """Most values of a row in a column of lists.

    Raises:
        TooLarge: if that cannot be told.
    """
    longest = current = 0
    for page in _pages(file, column):
        if page.kind == _DICTIONARY_PAGE:
            continue
        left = page.values
        for levels, count in _levels(_level_bytes(file, column, page), max_level.bit_length()):
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
            raise TooLarge(f"it cannot be told where the rows of the column {column.path_in_schema} begin")
    return max(longest, current)


def _level_bytes(file: IO[bytes], column: Any, page: _Page) -> bytes:
    """The repetition levels of a page, as they are encoded; empty if it is not known how."""
    import pyarrow

    file.seek(page.place)
    content = file.read(page.packed)
    if page.is_second:
        return content[: _number(page.header, 6)]  # in front, and never compressed
    if page.header.get(4) != _RLE:
        return b""
    if column.compression != "UNCOMPRESSED":
        name = {"LZ4": "lz4_raw"}.get(column.compression, column.compression.lower())
        try:
            content = pyarrow.decompress(content, decompressed_size=page.size, codec=name, asbytes=True)
        except (pyarrow.ArrowException, OSError, ValueError):
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
            head = _varint(stream)
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


def _read_struct(file: IO[bytes]) -> dict[int, Any]:
    """Whole numbers and structs of a struct in Thrift's compact protocol, by field; other fields are skipped.

    Raises:
        EOFError: if there is no such struct here.
    """
    found: dict[int, Any] = {}
    field = 0
    while (head := _byte(file)) != 0:
        field = field + (head >> 4) if head >> 4 else _signed(_varint(file))
        kind = head & 15
        if kind in _VARINTS[1:]:
            found[field] = _signed(_varint(file))
        elif kind == _STRUCT:
            found[field] = _read_struct(file)
        else:
            _skip(file, kind)
    return found


def _skip(file: IO[bytes], kind: int, *, in_list: bool = False) -> None:
    if kind in (1, 2):
        if in_list:
            _byte(file)
    elif kind == _VARINTS[0]:
        _byte(file)
    elif kind in _VARINTS:
        _varint(file)
    elif kind == _DOUBLE:
        file.seek(8, io.SEEK_CUR)
    elif kind == _BINARY:
        file.seek(min(_varint(file), _MAX_HEADER_BYTES), io.SEEK_CUR)
    elif kind in _LISTS:
        head = _byte(file)
        for _ in range(min(_varint(file) if head >> 4 == 15 else head >> 4, _MAX_HEADER_BYTES)):
            _skip(file, head & 15, in_list=True)
    elif kind == _STRUCT:
        _read_struct(file)
    else:
        raise EOFError(f"no field of a page header has the type {kind}")


def _byte(file: IO[bytes]) -> int:
    if not (content := file.read(1)):
        raise EOFError
    return content[0]


def _varint(file: IO[bytes]) -> int:
    result = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        result |= (byte & 127) << shift
        if byte < 128:
            return result
    raise EOFError("a number of more than 64 bits")


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
