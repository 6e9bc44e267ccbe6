"""Footers of Parquet files: read as pyarrow reads them, and damaged ones that would end its process."""

from __future__ import annotations

import datetime
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from align.data.reader import read_raw
from align.errors import DataError
from align.formats.parquet_footer import read_row_groups
from align.formats.raw import RawProblem
from align.formats.thrift import read_struct
from align.selection.files.open import open_file
from align.selection.files.reader import RowFile

TABLE = pyarrow.table(
    {
        "text": ["a", "가", None] * 100,
        "label": [True, False, None] * 100,
        "nested": [[{"role": "user", "content": ["x", "y"]}], [], None] * 100,
        "number": [float(number) for number in range(300)],
        "day": [datetime.date(2026, 1, 1)] * 300,
    }
)
CODECS = {"NONE": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7}
PREFIXES = 7


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("version", ["1.0", "2.6"])
@pytest.mark.parametrize("more", [{}, {"write_page_index": True, "write_statistics": False}, {"use_dictionary": False}])
def test_it_is_read_as_pyarrow_reads_it(tmp_path: Path, codec: str, version: Any, more: dict[str, Any]) -> None:
    path = tmp_path / "a.parquet"
    if more.get("use_dictionary") is False:
        more = {**more, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    parquet.write_table(TABLE, path, compression=codec, version=version, row_group_size=70, **more)
    metadata, groups = parquet.read_metadata(path), read_row_groups(path)
    assert [group.num_rows for group in groups] == [70, 70, 70, 70, 20]
    for number, group in enumerate(groups):
        theirs = [metadata.row_group(number).column(place) for place in range(metadata.num_columns)]
        starts = [[one.dictionary_page_offset, one.data_page_offset] for one in theirs]
        assert [one.place for one in group.columns] == [min(start for start in some if start) for some in starts]
        assert [one.packed_bytes for one in group.columns] == [one.total_compressed_size for one in theirs]
        assert {one.codec for one in group.columns} == {CODECS[codec]}
        assert [PREFIXES in one.encodings for one in group.columns] == ["DELTA_BYTE_ARRAY" in one.encodings for one in theirs]


def damaged(path: Path, before: bytes, after: bytes) -> Path:
    """A file of scored candidates whose footer has `after` in place of `before`."""
    rows = {"prompt_id": ["p", "p"], "prompt": ["x", "x"], "completion": ["a", "b"], "score": [1.0, 2.0]}
    parquet.write_table(pyarrow.table(rows), path)
    content = path.read_bytes()
    place = content.rindex(before)
    path.write_bytes(content[:place] + after + content[place + len(before) :])
    return path


# The column becomes one that is never null, to which its statistics do not fit.
OPTIONAL, REQUIRED = b"\x25\x02\x18\x09prompt_id", b"\x25\x00\x18\x09prompt_id"


def test_a_column_whose_statistics_do_not_fit_it(tmp_path: Path) -> None:
    path = damaged(tmp_path / "a.parquet", OPTIONAL, REQUIRED)
    theirs = f"from pyarrow import parquet; parquet.read_metadata({str(path)!r}).row_group(0).column(0)"
    ended = subprocess.run([sys.executable, "-c", theirs], capture_output=True, check=False)
    assert ended.returncode < 0, "pyarrow no longer ends the process: its objects could be used again"
    ((_, row),) = read_raw(path)
    assert isinstance(row, RawProblem) and row.reason == "damaged_file"
    with pytest.raises(DataError, match=r"a\.parquet: damaged \(Definition level histogram size mismatch"):
        list(open_file(RowFile(path)).runs())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"PAR1", b"PAR2"),
        (b"\x25\x02\x18\x0acompletion", b"\x25\x02\x1f\x0acompletion"),  # a type that there is not
        (b"\x19\x1c\x19\x4c", b"\x19\x1c\x19\x3c"),  # three columns of four
        (b"\x19\x1c\x19\x4c", b"\x19\x1c\x15\x4c"),  # a number in place of the columns
    ],
)
def test_other_damage(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = damaged(tmp_path / "a.parquet", before, after)
    *_, (_, row) = read_raw(path)
    assert isinstance(row, RawProblem) and row.reason == "damaged_file"
    with pytest.raises(DataError, match=r"a\.parquet: (cannot be read as Parquet|damaged)"):
        list(open_file(RowFile(path)).runs())


def test_structs_of_thrift() -> None:
    """Worked by hand: field 1 = -3, field 3 = [1, {5: 7}…], a text, booleans, and a field far away by its own number."""
    content = io.BytesIO(
        bytes([0x15, 5])  # 1: i32, zigzag of -3
        + bytes([0x18, 2, 65, 66])  # 2: a text of two bytes
        + bytes([0x19, 0x2C, 0x55, 14, 0, 0x55, 16, 0])  # 3: a list of two structs, each with the field 5
        + bytes([0x11, 0x12])  # 4 and 5: true and false
        + bytes([0x06, 0xD0, 0x0F, 0x80, 0x01])  # 1000: i64, two bytes for 64
        + bytes([0x17, *[0] * 8])  # 1001: a double
        + bytes([0x13, 200])  # 1002: a byte
        + bytes([0x19, 0x21, 1, 2])  # 1003: a list of two booleans
        + bytes([0])
        + b"behind"
    )
    wanted: Any = {1: None, 2: None, 3: {5: None}, 1000: None, 1002: None, 1003: None}
    found = read_struct(content, wanted)
    assert found == {1: -3, 2: None, 3: [{5: 7}, {5: 8}], 1000: 64, 1002: 200, 1003: [1, 2]}
    assert content.read() == b"behind"
    content.seek(0)
    assert read_struct(content, {}) == {} and content.read() == b"behind"


@pytest.mark.parametrize(
    "content", [b"", b"\x15", b"\x1c" * 5000, b"\x15" + b"\xff" * 11, b"\x1e\x00", b"\x19\xf5\xff\xff\xff\x7f"]
)
def test_what_is_no_struct(content: bytes) -> None:
    for wanted in ({}, {1: {1: None}}):
        with pytest.raises(EOFError, match="."):
            read_struct(io.BytesIO(content), wanted)  # type: ignore[arg-type]


def test_a_page_that_is_longer_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow would take 1.3 GB and three seconds to find out."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"] * 5}), path, compression="none")
    content = path.read_bytes()
    place = 4 + 1  # behind the file's mark and the kind of its first page: the header's bytes unpacked, and packed
    assert content[place - 1 : place + 4] == b"\x15\x04\x15\x0a\x15"
    long = bytes([0x15, 0x0A, 0x15, 0xF4, 0x90, 0x80, 0x80, 0x0A])
    path.write_bytes(content[: place + 1] + long + content[place + 5 :])
    ((_, row),) = read_raw(path)
    assert isinstance(row, RawProblem) and row.reason == "damaged_file"
    assert "a page of 1,342,178,362 bytes is longer than the file" in row.message
