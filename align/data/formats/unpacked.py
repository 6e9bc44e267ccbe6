"""How much a compressed file may become: files made to fill the memory are refused before they are unpacked.

A Parquet file has many small pages, each unpacked as a whole; an Arrow file has buffers. Their headers say how large they will
be, and pyarrow has no function for either, nor a limit of its own.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from align.data.formats.raw import MAX_LINE_BYTES

if TYPE_CHECKING:
    import gzip

    import pyarrow

MAX_PAGE_BYTES = 4 * MAX_LINE_BYTES
"""Of a page of a Parquet file, unpacked. Writers begin a new page after about 1 MB, so that it holds one value more than that."""
MAX_REPEATED_BYTES = 1 << 28
"""That the rows of a batch may take when each repeats the largest value of a dictionary. pyarrow needs three times as much."""
MAX_RATIO = 300
"""Most bytes from one compressed byte, for a gzip file or a batch of an Arrow file. Texts shrink to a third or a tenth."""
FREE_BYTES = 4 * MAX_LINE_BYTES
"""Unpacked bytes for which any ratio is allowed."""
_DICTIONARY_PAGE = 2
# Of Thrift's compact protocol, in which page headers are written.
_VARINTS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (3, 4, 5, 6), 7, 8, (9, 10), 12
_MAX_HEADER_BYTES = 1 << 24


class TooLarge(ValueError):
    """What a file would become when it is unpacked."""


class Unpacked(io.RawIOBase):
    """A gzip stream that ends with TooLarge where it has become more than `MAX_RATIO` times the file."""

    def __init__(self, stream: gzip.GzipFile, file_bytes: int) -> None:
        self._stream = stream
        self._most = max(FREE_BYTES, MAX_RATIO * file_bytes)
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read1(len(buffer))  # not `read`: what comes before damage would be lost
        buffer[: len(content)] = content
        self._read += len(content)
        if self._read > self._most:
            raise TooLarge(f"it becomes more than {MAX_RATIO} times as large when it is unpacked")
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def parquet_batch_rows(path: Path, metadata: pyarrow.parquet.FileMetaData, most: int) -> int:
    """How many rows may be read at a time, at most `most`.

    Raises:
        TooLarge: if a page unpacks to more than `MAX_PAGE_BYTES`.
    """
    repeated = 0
    with path.open("rb") as file:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            repeated = max(repeated, sum(_repeated_bytes(file, group.column(place)) for place in range(group.num_columns)))
    return most if not repeated else max(1, min(most, MAX_REPEATED_BYTES // repeated))


def _repeated_bytes(file: IO[bytes], column: Any) -> int:
    """Largest size of a value that few bytes can repeat in every row: of a dictionary, or as the prefix of the value before."""
    largest = 0
    has_prefixes = "DELTA_BYTE_ARRAY" in column.encodings
    for kind, size in _pages(file, column):
        if size > MAX_PAGE_BYTES:
            raise TooLarge(f"a page of the column {column.path_in_schema} unpacks to {size:,} bytes")
        if kind == _DICTIONARY_PAGE or has_prefixes:
            largest = max(largest, size)
    return largest


def _pages(file: IO[bytes], column: Any) -> Iterator[tuple[int, int]]:
    """Type and unpacked size of each page of a column's chunk, as far as headers can be read; pyarrow reports what is damaged."""
    starts = [column.dictionary_page_offset, column.data_page_offset]
    place = min(start for start in starts if start)
    end = place + column.total_compressed_size
    while place < end:
        file.seek(place)
        try:
            header = _read_struct(file)
        except (EOFError, RecursionError):
            return
        kind, unpacked, packed = (header.get(number) for number in (1, 2, 3))
        if kind is None or unpacked is None or packed is None or packed < 0:
            return
        yield kind, unpacked
        place = file.tell() + packed


def _read_struct(file: IO[bytes]) -> dict[int, int]:
    """Whole numbers of a struct in Thrift's compact protocol, by field; other fields are skipped.

    Raises:
        EOFError: if there is no such struct here.
    """
    found: dict[int, int] = {}
    field = 0
    while (head := _byte(file)) != 0:
        field = field + (head >> 4) if head >> 4 else _signed(_varint(file))
        kind = head & 15
        if kind in _VARINTS[1:]:
            found[field] = _signed(_varint(file))
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


def check_arrow(path: Path) -> None:
    """Look at every batch of an Arrow file, without unpacking one. What cannot be read is left to pyarrow's reader.

    Raises:
        TooLarge: if a compressed batch becomes more than `MAX_RATIO` times as large.
    """
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        if source.read(6) != b"ARROW1":
            source.seek(0)
        else:
            source.seek(8)  # behind the mark, a file is a stream
        try:
            for message in pyarrow.ipc.MessageReader.open_stream(source):
                if message.type == "record batch":
                    _check_batch(message.metadata.to_pybytes(), message.body)
        except (pyarrow.ArrowException, OSError, EOFError, struct.error, IndexError):
            return


def _check_batch(metadata: bytes, body: pyarrow.Buffer) -> None:
    message = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    batch = message.table(2)
    if batch.field(3) is None:
        return  # not compressed
    unpacked = 0
    for offset, length in batch.structs(2):
        if length >= 8:
            # Each buffer begins with its size when it is unpacked; -1: it is not packed.
            unpacked += max(0, struct.unpack("<q", body.slice(offset, 8).to_pybytes())[0])
    if unpacked > max(FREE_BYTES, MAX_RATIO * body.size):
        raise TooLarge(f"a batch of {body.size:,} bytes unpacks to {unpacked:,}")


class _Table:
    """A table of a flatbuffer, the format of Arrow's metadata."""

    def __init__(self, content: bytes, place: int) -> None:
        self._content = content
        self._place = place

    def field(self, number: int) -> int | None:
        """Where the value of a field is; None if it has none."""
        fields = self._place - self._number("<i", self._place)
        entry = 4 + 2 * number
        offset = self._number("<H", fields + entry) if entry < self._number("<H", fields) else 0
        return self._place + offset if offset else None

    def table(self, number: int) -> _Table:
        place = self.field(number)
        if place is None:
            raise EOFError("the metadata has no batch")
        return _Table(self._content, place + self._number("<I", place))

    def structs(self, number: int) -> list[tuple[int, int]]:
        """A vector of structs of two whole numbers of 64 bits."""
        place = self.field(number)
        if place is None:
            return []
        place += self._number("<I", place)
        count = self._number("<I", place)
        return list(struct.iter_unpack("<qq", self._content[place + 4 : place + 4 + 16 * count]))

    def _number(self, form: str, place: int) -> int:
        return int(struct.unpack_from(form, self._content, place)[0])
