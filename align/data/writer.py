"""Writes canonical rows, the fields of a record in their order, as JSON Lines or Parquet. Reading them gives the same records.

The origin of a row (`line`, `file`) is left out: it would be wrong for the new file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from align.config.shape import members
from align.errors import DataError, RecipeError
from align.records import Message
from align.rows import RowKind
from align.rows.kind import TOOL_CALLS
from align.store.atomic import atomic_writer

if TYPE_CHECKING:
    import pyarrow

PARQUET_BATCH_ROWS = 10_000
"""Rows per Parquet row group, and held in memory at once."""


def write_canonical(path: Path, kind: RowKind[Any], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows of `kind` atomically, in the format that the ending of `path` names. Returns their number.

    Raises:
        RecipeError: see `require_writable_format`.
        DataError: for a row with tools in Parquet.
        EnvironmentProblem: if the disk is full.
    """
    require_writable_format(path)
    with atomic_writer(path) as stream:
        return _WRITERS[path.suffix.lower()](stream, kind, rows)


def require_writable_format(path: Path) -> None:
    """Refuse a file ending for which there is no writer.

    Raises:
        RecipeError: with the possible endings.
    """
    if path.suffix.lower() not in _WRITERS:
        raise RecipeError(f"{path}: rows are written as {' or '.join(_WRITERS)}", hint="Give the file one of these endings.")


def _write_json_lines(stream: IO[bytes], kind: RowKind[Any], rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for row in map(partial(_user_form, kind), rows):
        # NaN is not JSON, and most readers refuse it.
        stream.write(json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        count += 1
    return count


def _user_form(kind: RowKind[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as users' files have it: tools in a column of their own, a completion with tool calls as a list of one message."""
    found = {name: row[name] for name in kind.columns}
    if calls := row.get(TOOL_CALLS):
        found["completion"] = [{"role": "assistant", "content": row["completion"], TOOL_CALLS: calls}]
    first, *others = row.get("prompt") or [{}]
    if "tools" in first:
        tools = first["tools"]
        found |= {"prompt": [{name: first[name] for name in first if name != "tools"}, *others], "tools": tools}
    return found


def _refuse_tools(row: Mapping[str, Any]) -> None:
    if row.get(TOOL_CALLS) or any(len(message) > 2 for message in row.get("prompt") or ()):
        raise DataError(
            f"row {row['id']}: Parquet has no column for tools, tool calls and weights",
            hint="Write the rows as .jsonl.",
        )


def _write_parquet(stream: IO[bytes], kind: RowKind[Any], rows: Iterable[Mapping[str, Any]]) -> int:
    import pyarrow
    from pyarrow import parquet

    # Given, not inferred: a column that is null in the first batch would get the type null, and later batches would not fit.
    schema = _arrow_schema(kind)
    count = 0
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        remaining = iter(rows)
        while batch := list(islice(remaining, PARQUET_BATCH_ROWS)):
            for row in batch:
                _refuse_tools(row)
            columns = {name: [row[name] for row in batch] for name in schema.names}
            writer.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema=schema))
            count += len(batch)
    return count


def _arrow_schema(kind: RowKind[Any]) -> pyarrow.Schema:
    import pyarrow

    text = pyarrow.string()
    message = pyarrow.struct([("role", text), ("content", text)])
    types: dict[Any, pyarrow.DataType] = {str: text, float: pyarrow.float64(), bool: pyarrow.bool_()}
    types[list[Message]] = pyarrow.list_(message)
    fields = kind.record.model_fields
    return pyarrow.schema([(name, types[members(fields[name].annotation)[0]]) for name in kind.columns])


_WRITERS: Mapping[str, Callable[[IO[bytes], RowKind[Any], Iterable[Mapping[str, Any]]], int]] = {
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
