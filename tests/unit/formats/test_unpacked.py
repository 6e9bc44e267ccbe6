"""Files that would fill the memory: they end with a problem before that, and what is right is read as before."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from align.data.reader import RawProblem, read_raw
from align.formats import columnar, delimited, json_list, parquet_pages, raw, unpacked
from align.formats.parquet_footer import read_row_groups


def found(path: Path) -> list[str]:
    """What each row is: `ok`, or why it is none; `end` marks a problem that ends the file."""
    rows = [row for _, row in read_raw(path)]
    return [f"{row.reason}{' end' if row.ends_file else ''}" if isinstance(row, RawProblem) else "ok" for row in rows]


def write_parquet(path: Path, texts: list[str], **options: object) -> Path:
    parquet.write_table(pyarrow.table({"text": texts}), path, **options)
    return path


def write_arrow(path: Path, texts: list[str], *, is_file: bool, compression: str | None) -> Path:
    table = pyarrow.table({"text": texts})
    new = pyarrow.ipc.new_file if is_file else pyarrow.ipc.new_stream
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return path


def test_an_element_of_a_json_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (raw, json_list):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_list, "_CHUNK_CHARACTERS", 100)
    path = tmp_path / "a.json"
    for long in ("x" * 5000, "x" * 1000, "가" * 400, "😀" * 250):
        path.write_text(json.dumps([{"a": "x" * 800}, {"a": long}, {"a": "y"}], ensure_ascii=False))
        assert found(path) == ["ok", "too_long end"], long
    path.write_text(json.dumps([{"a": "가" * 300}, {"a": "😀" * 240}], ensure_ascii=False))
    assert found(path) == ["ok", "ok"]


ROWS_OF_CSV = {
    "characters": "a," + "x" * 2000,
    "bytes": "a," + "가" * 340,
    "lines": '"' + "x\n" * 600 + '",b',
    "cells": "a," * 301,
}


@pytest.mark.parametrize("row", ROWS_OF_CSV.values(), ids=ROWS_OF_CSV)
@pytest.mark.parametrize("piece", [1 << 22, 7])
def test_a_row_of_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, piece: int) -> None:
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(delimited, "_PIECE_CHARACTERS", piece)
    monkeypatch.setattr(raw, "LONG_CHARACTERS", 100)
    monkeypatch.setattr(raw, "MAX_VALUES", 200)
    path = tmp_path / "a.csv"
    path.write_text("p,q\n" + "c,d\n" * 500 + row + "\ne,f\n")
    assert found(path) == ["ok"] * 500 + ["too_long end"]


def test_gzip_that_becomes_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000))
    assert found(path) == ["ok"] * 100_000
    monkeypatch.setattr(unpacked, "FREE_BYTES", 1000)
    monkeypatch.setattr(unpacked, "MAX_RATIO", 10)
    assert found(path)[-1] == "too_long end"


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_page_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x" * 1_000_000, "y"], compression="zstd", use_dictionary=dictionary)
    assert path.stat().st_size < 5000 and found(path) == ["ok", "ok"]
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 500_000)
    assert found(path) == ["too_long end"]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_value_that_a_dictionary_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x" * 10_000] * 3000, data_page_version=version)
    rows = list(read_raw(path))
    sizes: list[int] = []
    monkeypatch.setattr(parquet_pages, "MAX_BATCH_BYTES", 500_000)
    real = columnar._rows

    def seen(batch: pyarrow.RecordBatch) -> object:
        sizes.append(batch.num_rows)
        return real(batch)

    monkeypatch.setattr(columnar, "_rows", seen)
    assert list(read_raw(path)) == rows
    assert 1 < max(sizes) <= 50 and sum(sizes) == 3000


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_row_of_a_table_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    texts = ["a", "x" * 5000, "b", "c"]
    path = tmp_path / name
    if name == "a.arrow":
        write_arrow(path, texts, is_file=False, compression=None)
    else:
        write_parquet(path, texts)
    monkeypatch.setattr(columnar, "MAX_LINE_BYTES", 1000)
    assert found(path) == ["ok", "too_long", "ok", "ok"]


@pytest.mark.parametrize("is_file", [True, False])
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_batch_of_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool, compression: str) -> None:
    path = write_arrow(tmp_path / "a.arrow", ["x" * 1_000_000, "y"], is_file=is_file, compression=compression)
    assert found(path) == ["ok", "ok"]
    monkeypatch.setattr(unpacked, "FREE_BYTES", 500_000)
    monkeypatch.setattr(unpacked, "MAX_BATCH_RATIO", 10)
    assert found(path) == ["too_long end"]


def test_rows_of_an_arrow_dictionary_are_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = pyarrow.array(["x" * 600, "y"] * 50).dictionary_encode()
    table = pyarrow.table({"text": column})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    monkeypatch.setattr(columnar, "MAX_LINE_BYTES", 500)
    assert found(tmp_path / "a.arrow") == ["too_long", "ok"] * 50


def a_list(count: int, kind: pyarrow.DataType) -> pyarrow.Array:
    """One row: a list of so many zeros or nulls."""
    values = pyarrow.nulls(count) if pyarrow.types.is_null(kind) else pyarrow.array([0] * count).cast(kind)
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), values)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy", "lz4"])
def test_a_list_that_a_page_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, compression: str) -> None:
    lists = pyarrow.array([[[1, 2], []], [], None, [[3] * 40, [4] * 50]] * 300)
    path, options = tmp_path / "a.parquet", {"data_page_version": version, "compression": compression}
    parquet.write_table(pyarrow.table({"l": lists}), path, data_page_size=200, **options)
    rows = list(read_raw(path))
    monkeypatch.setattr(parquet_pages, "MAX_BATCH_VALUES", 90)
    assert list(read_raw(path)) == rows
    monkeypatch.setattr(parquet_pages, "MAX_BATCH_VALUES", 89)
    (problem,) = [row for _, row in read_raw(path)]
    assert isinstance(problem, RawProblem)
    assert "a row of the column l.list.element.list.element has 90 values" in problem.message


def test_nulls_of_a_fixed_width_take_their_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"f": pyarrow.nulls(50, pyarrow.binary(1000))}), path)
    groups, schema = read_row_groups(path), parquet.read_metadata(path).schema
    assert list(parquet_pages.group_batch_rows(path, groups, schema, 50)) == [50]
    monkeypatch.setattr(parquet_pages, "MAX_BATCH_BYTES", 10_000)
    assert list(parquet_pages.group_batch_rows(path, groups, schema, 50)) == [10]


def write_table(path: Path, **columns: pyarrow.Array) -> Path:
    table = pyarrow.table(columns)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def repeated(text: str, count: int) -> pyarrow.Array:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))


def views(text: bytes, count: int) -> pyarrow.Array:
    """All of them name the same bytes."""
    view = struct.pack("<i4sii", len(text), text[:4], 0, 0)
    parts = [None, pyarrow.py_buffer(view * count), pyarrow.py_buffer(text)]
    return pyarrow.Array.from_buffers(pyarrow.string_view(), count, parts)


@pytest.mark.parametrize(
    "column",
    [
        a_list(2000, pyarrow.null()),
        a_list(2000, pyarrow.bool_()),
        pyarrow.ListArray.from_arrays(pyarrow.array([0, 100], pyarrow.int32()), repeated("x" * 100, 100)),
        pyarrow.StructArray.from_arrays([repeated("x" * 10_000, 1)], ["s"]),
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.nulls(2000), 2000),
        views(b"x" * 10_000, 1),
    ],
    ids=["nulls", "bits", "dictionary in a list", "dictionary in a struct", "fixed", "view"],
)
def test_what_arrow_repeats_is_counted_as_often_as_python_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: pyarrow.Array
) -> None:
    path = write_table(tmp_path / "a.arrow", c=column)
    assert found(path) == ["ok"]
    monkeypatch.setattr(columnar, "MAX_LINE_BYTES", 9000)
    assert found(path) == ["too_long"]


def test_many_views_of_a_text_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "a.arrow", c=views(b"x" * 1000, 100))
    monkeypatch.setattr(columnar, "MAX_LINE_BYTES", 9000)
    assert found(path) == ["ok"] * 100


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([100], pyarrow.int32()), pyarrow.array(["x"])),
        pyarrow.ListViewArray.from_arrays([0, 0], [3, 3], pyarrow.array([1, 2, 3])),
    ],
)
def test_types_whose_size_cannot_be_told_are_refused(tmp_path: Path, column: pyarrow.Array) -> None:
    path = write_table(tmp_path / "a.arrow", c=column)
    (problem,) = [row for _, row in read_raw(path)]
    assert isinstance(problem, RawProblem)
    assert problem.reason == "wrong_columns"
    assert f"the column 'c' has the type {column.type}" in problem.message


def test_a_packed_dictionary_of_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pyarrow.table({"c": repeated("x" * 1_000_000, 2), "d": repeated("y" * 1_000_000, 2)})
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with (
        pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    assert found(tmp_path / "a.arrow") == ["ok", "ok"]
    monkeypatch.setattr(unpacked, "FREE_BYTES", 1_500_000)  # less than both together
    assert found(tmp_path / "a.arrow") == ["too_long end"]


@pytest.mark.parametrize(("name", "shape"), [("a.jsonl", '{{"a": [{}]}}\n'), ("a.json", '[{{"a": [{}]}}]')])
def test_values_of_json_are_counted_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: str
) -> None:
    monkeypatch.setattr(raw, "LONG_CHARACTERS", 100)
    monkeypatch.setattr(raw, "MAX_VALUES", 50)
    path = tmp_path / name
    for value, fitting in (("[]", 49), ('{"b":1}', 16)):  # the key around them counts, too
        path.write_text(shape.format(",".join([value] * fitting)))
        assert found(path) == ["ok"]
        path.write_text(shape.format(",".join([value] * (fitting + 1))))
        assert found(path)[0].startswith("too_long")


def test_what_was_read_behind_a_large_element_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked at again for each element in it: 47 MB were not read in half a minute."""
    sizes: list[int] = []

    def seen(text: str, start: int = 0) -> str | None:
        sizes.append(len(text) - start)
        return raw.too_many_values(text, start)

    monkeypatch.setattr(json_list, "_CHUNK_CHARACTERS", 20)
    monkeypatch.setattr(json_list, "too_many_values", seen)
    rows = [{"a": "x" * 330}, *({"b": number} for number in range(200))]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=1))
    found = list(read_raw(path))
    assert [row for _, row in found] == rows
    assert found[-1][0] == 3 * len(rows) - 1
    assert sum(size > 60 for size in sizes) <= 5  # as often as the text was doubled


READ = """
import sys
from pathlib import Path
import pyarrow.compute, pyarrow.parquet
from align.data.reader import read_raw
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10
for path in sys.argv[1:]:
    before = peak()
    rows = sum(1 for _ in read_raw(Path(path)))
    print(Path(path).name, rows, peak() - before, flush=True)
"""
MOST_MIB = 400


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process that runs")
def test_hostile_files_take_no_gigabytes(tmp_path: Path) -> None:
    """Unpacked without limits, each of them takes one to ten gigabytes."""
    parquet.write_table(pyarrow.table({"l": nulls(40_000_000, pyarrow.int32())}), tmp_path / "nulls.parquet", compression="zstd")
    write_table(tmp_path / "nulls.arrow", c=nulls(1_000_000_000, pyarrow.null()))
    named = pyarrow.ListArray.from_arrays(pyarrow.array([0, 10_000], pyarrow.int32()), repeated("x" * 1_000_000, 10_000))
    write_table(tmp_path / "named.arrow", c=named)
    (tmp_path / "empty.jsonl").write_bytes(b'{"a": [' + b"[]," * 20_000_000 + b"[]]}\n")
    parquet.write_table(pyarrow.table({"d": repeated("x" * 8_000_000, 300)}), tmp_path / "same.parquet", compression="zstd")
    (tmp_path / "keys.jsonl").write_text('{"a": 1' + "".join(f',"{number}":1' for number in range(3_900_000)) + "}\n")
    (tmp_path / "cells.csv").write_bytes(b"a,b\n" + b"," * 60_000_000 + b"\n")
    (tmp_path / "names.csv").write_text(",".join(str(number % 500_000) for number in range(1_000_000)) + "\n")
    names = ["nulls.parquet", "nulls.arrow", "named.arrow", "empty.jsonl", "same.parquet", "keys.jsonl", "cells.csv", "names.csv"]
    command = [sys.executable, "-c", READ, *(str(tmp_path / name) for name in names)]
    told = [line.split() for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]
    assert [name for name, _, _ in told] == names
    assert {name: int(grown) for name, _, grown in told if int(grown) > MOST_MIB} == {}


def nulls(count: int, kind: pyarrow.DataType) -> pyarrow.Array:
    """One row: a list of so many nulls."""
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), pyarrow.nulls(count, kind))
