"""Rows in tokens as Arrow files that are mapped into memory: nothing of a row is an object before it is asked for.

rows.arrow       a batch for each part of the records: number of the record, id, line, its parts in tokens
refused.arrow    likewise, the records that the template or the tokenizer refuses: number, id, line, reason, detail
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from align.data.forms import EVERY_TURN, FORMS, Form, TokenRow, encode_views
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.store.row_file import RowFile, read_lines

ROWS_NAME, REFUSED_NAME = "rows.arrow", "refused.arrow"
# A part is one batch of Arrow. Its limits bound what a process holds at a time.
PART_RECORDS = 2048
PART_BYTES = 1 << 23

Integers = np.ndarray[Any, np.dtype[np.int64]]
IDS = pa.list_(pa.int32())
ORIGIN = [("record", pa.int64()), ("id", pa.string()), ("line", pa.int64())]
REFUSED = pa.schema([*ORIGIN, ("reason", pa.string()), ("detail", pa.string())])


def schema_of(form: Form) -> pa.Schema:
    """Columns of a form's rows."""
    turns = [("earlier", pa.list_(IDS)), ("turns", IDS)] if form is EVERY_TURN else []
    return pa.schema([*ORIGIN, *((part, IDS) for part in form.parts), *turns, *((name, pa.float64()) for name in form.numbers)])


@dataclass(frozen=True)
class Part:
    """Some records of a file, one behind the other."""

    first: int
    """Number of the first one."""
    start: int
    """Byte at which it begins."""
    count: int


def parts_of(records: RowFile[Any]) -> Iterator[Part]:
    """The records of a file in parts. They follow from the file alone, and the bytes of the result from them."""
    first, starts = 0, records.starts
    while first < len(records):
        within = int(np.searchsorted(starts, starts[first] + PART_BYTES, side="right")) - 1
        end = max(first + 1, min(first + PART_RECORDS, within))
        yield Part(first, int(starts[first]), end - first)
        first = end


@dataclass(frozen=True)
class EncodedPart:
    """What became of a part."""

    rows: bytes
    """A batch of `schema_of` the form, serialized."""
    refused: bytes
    """A batch of REFUSED."""
    dates: dict[str, str]
    """What the template asked for; see `ChatFormat.printed_dates`."""
    seconds: float
    """Time that the rendering took."""


@dataclass
class PartEncoder:
    """Renders and tokenizes parts of a file, in this process or in another one."""

    path: Path
    form: str
    """Its name."""
    conversations: int
    """Of all parts together: the template's time limit is theirs."""
    load: Callable[[], ChatFormat]
    """Makes the chat format, once in a process."""

    @cached_property
    def _format(self) -> ChatFormat:
        return self.load()

    def __call__(self, part: Part) -> EncodedPart:
        """Encode one part.

        Raises:
            FormatError: if the template takes too long.
        """
        form, chat_format = FORMS[self.form], self._format
        read = read_lines(self.path, form.record, start=part.start, count=part.count)
        records = [one for record in read for one in form.expand(record)]
        # What earlier parts asked for is known; the order in which the forms of dates come must not depend on who has seen them.
        before, chat_format.printed_dates = chat_format.printed_dates, {}
        try:
            encoded, refused, seconds = encode_views(records, chat_format, form.views, conversations=self.conversations)
        finally:
            dates, chat_format.printed_dates = chat_format.printed_dates, before
        rows: list[tuple[int, TokenRow]] = []
        for number, tokens in encoded.items():
            try:
                # As a list first: a record that is refused leaves none of its rows behind.
                rows += [(number, row) for row in list(form.rows(records[number], tokens))]
            except TemplateProblem as problem:
                refused[number] = (problem.reason, str(problem))
        first = part.first * form.each
        return EncodedPart(_rows_batch(form, first, records, rows), _refused_batch(first, records, refused), dates, seconds)


def _rows_batch(form: Form, first: int, records: Sequence[Any], rows: Sequence[tuple[int, TokenRow]]) -> bytes:
    columns: dict[str, Any] = {
        "record": [first + number for number, _ in rows],
        "id": [records[number].id for number, _ in rows],
        "line": [records[number].line for number, _ in rows],
        **{part: [row.parts[place] for _, row in rows] for place, part in enumerate(form.parts)},
        **{name: [_number(getattr(records[number], name)) for number, _ in rows] for name in form.numbers},
    }
    if form is EVERY_TURN:
        columns["earlier"] = [list(itertools.chain.from_iterable(row.earlier)) for _, row in rows]
        columns["turns"] = [row.turns for _, row in rows]
    return _batch(schema_of(form), columns)


def _refused_batch(first: int, records: Sequence[Any], refused: dict[int, tuple[str, str]]) -> bytes:
    numbers = sorted(refused)
    columns = {
        "record": [first + number for number in numbers],
        "id": [records[number].id for number in numbers],
        "line": [records[number].line for number in numbers],
        "reason": [refused[number][0] for number in numbers],
        "detail": [refused[number][1] for number in numbers],
    }
    return _batch(REFUSED, columns)


def _batch(schema: pa.Schema, columns: dict[str, Any]) -> bytes:
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    content: bytes = pa.record_batch(arrays, schema=schema).serialize().to_pybytes()
    return content


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


class BatchWriter:
    """Writes serialized batches into an Arrow file, in the order in which they come. Empty ones are left out."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pa.ipc.new_file(stream, schema)
        self.rows = 0

    def add(self, content: bytes) -> None:
        batch = pa.ipc.read_record_batch(pa.py_buffer(content), self._schema)
        if batch.num_rows:
            self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> None:
        self._writer.close()


class ArrowRows:
    """The rows of an Arrow file of several batches, mapped into memory."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))
        self._lists: dict[tuple[int, str], tuple[Any, Any]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, row: int) -> tuple[int, int]:
        """Batch of a row, and its place there."""
        batch = bisect.bisect_right(self._ends, row)
        return batch, row - (self._ends[batch - 1] if batch else 0)

    def value(self, row: int, column: str) -> Any:
        batch, place = self.place(row)
        return self._batches[batch].column(column)[place].as_py()

    def numbers(self, column: str, dtype: Any = np.int64) -> Any:
        """A column of numbers, copied; NaN where there is none."""
        found = [batch.column(column).to_numpy(zero_copy_only=False).astype(dtype) for batch in self._batches]
        return np.concatenate(found) if found else np.zeros(0, dtype=dtype)

    def ids(self, row: int, column: str) -> list[int]:
        """A row of a column of token ids."""
        number, place = self.place(row)
        offsets, values = self._list(number, column)
        ids: list[int] = values[offsets[place] : offsets[place + 1]].tolist()
        return ids

    def lengths(self, column: str) -> Integers:
        """How many ids each row has; those of all its lists where it has several."""
        found = [np.zeros(0, dtype=np.int64)]
        for batch in self._batches:
            array = batch.column(column)
            offsets = array.offsets.to_numpy().astype(np.int64)
            if array.type != IDS:
                offsets = array.values.offsets.to_numpy().astype(np.int64)[offsets]
            found.append(np.diff(offsets))
        return np.concatenate(found)

    def _list(self, number: int, column: str) -> tuple[Any, Any]:
        """Offsets and ids of a batch, views of the file."""
        if (number, column) not in self._lists:
            array = self._batches[number].column(column)
            self._lists[number, column] = (array.offsets.to_numpy(), array.values.to_numpy())
        return self._lists[number, column]
