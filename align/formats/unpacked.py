"""How much a gzip or Arrow file may become: files made to fill the memory are refused before they are unpacked.

Buffers of an Arrow file say how large they will be; pyarrow has no function for it, nor a limit of its own.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.formats.raw import MAX_LINE_BYTES

if TYPE_CHECKING:
    import gzip

    import pyarrow

MAX_RATIO = 300
"""Most bytes from one compressed byte of a gzip file. Texts shrink to a third or a tenth."""
FREE_BYTES = 4 * MAX_LINE_BYTES
"""Unpacked bytes for which any ratio is allowed."""
MAX_BATCH_RATIO = 20
"""As `MAX_RATIO`, for a batch of an Arrow file, which is in memory as a whole."""
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_FILE_START = 8
"""Where the stream begins in a file of the file format, which has a footer with the places of the batches behind the stream."""


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


def check_arrow(path: Path) -> None:
    """Look at every batch of an Arrow file, without unpacking one. What cannot be read is left to pyarrow's reader.

    Raises:
        TooLarge: if a compressed batch becomes more than `MAX_BATCH_RATIO` times as large.
    """
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        is_file = source.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
        source.seek(ARROW_FILE_START if is_file else 0)
        held = packed = 0  # of the dictionaries so far, which stay in memory
        try:
            for message in pyarrow.ipc.MessageReader.open_stream(source):
                if message.type not in _BATCHES:
                    continue
                unpacked = held + _unpacked_bytes(message.metadata.to_pybytes(), message.body, _BATCHES[message.type])
                size = packed + message.body.size
                if unpacked > max(FREE_BYTES, MAX_BATCH_RATIO * size):
                    raise TooLarge(f"a batch and its dictionaries, of {size:,} bytes, unpack to {unpacked:,}")
                if message.type == "dictionary":
                    held, packed = unpacked, size
        except (pyarrow.ArrowException, OSError, EOFError, struct.error, IndexError):
            return


_BATCHES: dict[str, tuple[int, ...]] = {"record batch": (2,), "dictionary": (2, 1)}
"""Messages with values, and where in their metadata the batch is described."""


def _unpacked_bytes(metadata: bytes, body: pyarrow.Buffer, fields: tuple[int, ...]) -> int:
    """Of a batch that is compressed; 0 for another, which is what it is."""
    batch = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    for field in fields:
        batch = batch.table(field)
    if batch.field(3) is None:
        return 0
    unpacked = 0
    for offset, length in batch.structs(2):
        if length >= 8:
            # Each buffer begins with its size when it is unpacked; -1: it is not packed.
            unpacked += max(0, struct.unpack("<q", body.slice(offset, 8).to_pybytes())[0])
    return unpacked


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
