"""Parquet and Arrow files, read in batches of rows; `datasets` writes its folders in the latter.

A file that is damaged or cut short ends with a `damaged_file`, after the rows that could be read. pyarrow is imported when the
first such file is opened.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import DataError
from align.formats.held import held_bytes, unreadable_columns
from align.formats.parquet_footer import read_row_groups
from align.formats.parquet_pages import group_batch_rows
from align.formats.raw import MAX_LINE_BYTES, UTF8_HINT, RawProblem, RawRow, repeated_names
from align.formats.unpacked import ARROW_FILE_MAGIC, ARROW_FILE_START, TooLarge, check_arrow
from align.runtime.plain_file import open_plain
from align.system_errors import system_problem

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 4096
MAX_PARQUET_BUFFER_BYTES = 8 * 1024 * 1024
"""Read-ahead per column of a Parquet file."""
# Arrow's end of a stream: the continuation marker, then a length of zero.
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Rows of a Parquet file.

    Raises:
        DataError: if the file is absent or unreadable.
    """
    from pyarrow import parquet

    def batches() -> Iterator[pyarrow.RecordBatch]:
        # With a buffer, pages are read one after the other; pre_buffer would hold whole row groups.
        with parquet.ParquetFile(path, buffer_size=MAX_PARQUET_BUFFER_BYTES, pre_buffer=False) as file:
            limits, damaged = list[int](), None
            try:
                limits.extend(group_batch_rows(path, read_row_groups(path), file.schema, BATCH_ROWS))
            except EOFError as error:
                damaged = error
            for rows, groups in groupby(range(len(limits)), limits.__getitem__):
                yield from file.iter_batches(batch_size=rows, row_groups=list(groups), use_threads=False)
            if damaged is not None:
                raise damaged

    return _read(path, batches(), "Parquet")


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Rows of an Arrow file, in the stream format (which `datasets` writes) or the file format.

    Raises:
        DataError: if the file is absent or unreadable.
    """
    import pyarrow

    def batches() -> Iterator[pyarrow.RecordBatch]:
        check_arrow(path)
        with _BoundedFile(io.FileIO(path)) as source:
            in_footer = None
            if source.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC:
                with pyarrow.ipc.open_file(path) as reader:
                    in_footer = reader.num_record_batches
            # Both are read as the stream that was checked: the footer of a file could name other places.
            source.seek(0 if in_footer is None else ARROW_FILE_START)
            number = 0
            with pyarrow.ipc.open_stream(pyarrow.PythonFile(source, mode="r")) as stream:
                for batch in stream:
                    number += 1
                    yield batch
                _require_end(source, may_go_on=in_footer is not None)
            if in_footer not in (None, number):
                raise pyarrow.ArrowInvalid(f"its footer names {in_footer:,} batches, but there are {number:,}")

    return _read(path, batches(), "Arrow")


class _BoundedFile(io.BufferedReader):
    """A file that is never asked for more than it has: pyarrow would first take as much memory as damaged bytes say."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _require_end(source: _BoundedFile, may_go_on: bool) -> None:
    """Refuse a stream without its end mark, which pyarrow takes for whole: it may have been cut between two batches."""
    import pyarrow

    end = source.tell()
    source.seek(max(0, end - len(_STREAM_END)))
    if source.read(len(_STREAM_END)) != _STREAM_END:
        raise pyarrow.ArrowInvalid("the stream has no end mark")
    if source.read(1) and not may_go_on:
        raise pyarrow.ArrowInvalid("there are bytes behind the stream's end")


def _read(path: Path, batches: Iterator[pyarrow.RecordBatch], format_name: str) -> Iterator[RawRow]:
    """Numbered rows of the batches; what pyarrow cannot read ends the file."""
    import pyarrow

    number = 0
    try:
        open_plain(path).close()
    except OSError as error:  # which must not be reported as damage
        unreadable = DataError(f"{path}: cannot be read ({error.strerror or error})", hint="Check the path.")
        raise system_problem(error, path) or unreadable from error
    try:
        for batch in batches:
            # All batches have one schema. A row becomes a dict, which would keep only one of two columns with the same name.
            if number == 0 and (problem := _schema_problem(batch.schema)):
                yield 1, problem
                return
            # An Arrow file may hold all rows in one batch; only a slice of it becomes Python objects at a time.
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in _rows(batch.slice(start, BATCH_ROWS)):
                    number += 1
                    yield number, row
    except TooLarge as error:
        message = f"{error}, which is more than any row may have ({MAX_LINE_BYTES:,}); write the file again without it"
        yield number + 1, RawProblem("too_long", message, ends_file=True)
    except (pyarrow.ArrowException, OSError, EOFError, MemoryError, UnicodeDecodeError) as error:
        if (refused := system_problem(error, path)) is not None:
            raise refused from error
        # pyarrow raises OSError too. A flipped byte in a header can ask for any amount of memory, or spoil a column's name.
        yield number + 1, _damaged(format_name, error)


def _damaged(format_name: str, error: BaseException) -> RawProblem:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return RawProblem("damaged_file", f"the {format_name} file is damaged or cut short from here on ({reason})", ends_file=True)


def _schema_problem(schema: pyarrow.Schema) -> RawProblem | None:
    if twice := repeated_names(schema.names):
        return RawProblem("wrong_columns", f"the schema names {twice} more than once", ends_file=True)
    if unreadable := unreadable_columns(schema):
        return RawProblem("wrong_columns", f"{unreadable}, which is not read; write the file again without it", ends_file=True)
    return None


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | RawProblem]:
    """Rows as Python values. Bytes that are not UTF-8 concern their row only.

    Raises:
        pyarrow.ArrowInvalid: if the batch is damaged otherwise; reading it unchecked could end the process.
    """
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        # pyarrow has no separate exception for bytes that are not UTF-8.
        if "UTF8" not in str(error):
            raise
        if batch.num_rows == 1:
            yield RawProblem("bad_encoding", f"there are bytes that are not UTF-8; {UTF8_HINT}")
        else:
            # Checked again row by row, to name the rows concerned and keep the others.
            for place in range(batch.num_rows):
                yield from _rows(batch.slice(place, 1))
    else:
        yield from _rows_that_fit(batch)


def _rows_that_fit(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | RawProblem]:
    """Rows of a checked batch, of which no more become Python values at a time than a row may have bytes."""
    if (size := held_bytes(batch)) <= MAX_LINE_BYTES:
        yield from batch.to_pylist()
    elif batch.num_rows == 1:
        yield RawProblem("too_long", f"the row takes {size:,} bytes; at most {MAX_LINE_BYTES:,} are read")
    else:
        half = batch.num_rows // 2
        yield from _rows_that_fit(batch.slice(0, half))
        yield from _rows_that_fit(batch.slice(half))
