"""Parquet and Arrow files: whole, damaged, cut short, and with bytes that are not text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from align.data.reader import RawProblem, read_raw
from align.errors import DataError
from align.formats import columnar

ROWS = [{"id": str(number), "messages": [{"role": "user", "content": "é" * number}], "score": None} for number in range(50)]


def _parquet(path: Path, table: Any) -> None:
    parquet.write_table(table, path, row_group_size=20)


def _stream(path: Path, table: Any) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)


def _file(path: Path, table: Any) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)


FORMATS = [("a.parquet", _parquet), ("a.arrow", _stream), ("b.arrow", _file)]
every_format = pytest.mark.parametrize(("name", "write"), FORMATS, ids=["parquet", "stream", "file"])


def _last(path: Path) -> tuple[int, str, bool]:
    number, problem = list(read_raw(path))[-1]
    assert isinstance(problem, RawProblem)
    return number, problem.reason, problem.ends_file


@every_format
def test_rows_are_numbered(
    tmp_path: Path, name: str, write: Callable[[Path, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "BATCH_ROWS", 7)
    write(tmp_path / name, pyarrow.Table.from_pylist(ROWS))
    assert list(read_raw(tmp_path / name)) == list(enumerate(ROWS, start=1))


@every_format
def test_cut_short(tmp_path: Path, name: str, write: Callable[[Path, Any], None]) -> None:
    path = tmp_path / name
    write(path, pyarrow.Table.from_pylist(ROWS))
    path.write_bytes(path.read_bytes()[:-30])
    assert _last(path)[1:] == ("damaged_file", True)


def test_an_arrow_stream_cut_between_two_batches(tmp_path: Path) -> None:
    """Its rest reads as whole; only the end mark is missing."""
    path = tmp_path / "a.arrow"
    _stream(path, pyarrow.Table.from_pylist(ROWS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert _last(path) == (51, "damaged_file", True)
    path.write_bytes(whole + whole)
    assert _last(path) == (51, "damaged_file", True)


@every_format
def test_bytes_that_are_not_text_concern_their_row_only(tmp_path: Path, name: str, write: Callable[[Path, Any], None]) -> None:
    bad = pyarrow.array([b"a", b"\xff\xfe", b"c"]).cast(pyarrow.binary()).view(pyarrow.string())
    write(tmp_path / name, pyarrow.table({"text": bad}))
    rows = list(read_raw(tmp_path / name))
    assert [rows[0], rows[2]] == [(1, {"text": "a"}), (3, {"text": "c"})]
    assert isinstance(rows[1][1], RawProblem)
    assert rows[1][1].reason == "bad_encoding"


def test_a_damaged_page_ends_the_file_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _parquet(path, pyarrow.Table.from_pylist(ROWS))
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    assert _last(path)[1:] == ("damaged_file", True)


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"text": "a"}\n'])
def test_what_is_no_such_file(tmp_path: Path, content: bytes) -> None:
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(content)
        assert _last(tmp_path / name) == (1, "damaged_file", True)


def test_a_parquet_file_under_another_name(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", pyarrow.Table.from_pylist(ROWS))
    (tmp_path / "a.parquet").rename(tmp_path / "a.jsonl")
    ((_, problem),) = read_raw(tmp_path / "a.jsonl")
    assert isinstance(problem, RawProblem)
    assert "name it .parquet" in problem.message


def test_a_column_named_twice(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    _stream(tmp_path / "a.arrow", table)
    assert _last(tmp_path / "a.arrow") == (1, "wrong_columns", True)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_raw(tmp_path / "a.parquet"))
