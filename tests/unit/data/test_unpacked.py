"""Files that would fill the memory: they end with a problem before that, and what is right is read as before."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from align.data.formats import columnar, delimited, json_list, unpacked
from align.data.reader import RawProblem, read_raw


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
    monkeypatch.setattr(json_list, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_list, "_CHUNK_CHARACTERS", 100)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": "x" * 800}, {"a": "x" * 5000}, {"a": "y"}]))
    assert found(path) == ["ok", "too_long end"]


@pytest.mark.parametrize("row", ["a," + "x" * 2000, "a," * 800, '"' + "x\n" * 600 + '",b'])
def test_a_row_of_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 1000)
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
    monkeypatch.setattr(unpacked, "MAX_PAGE_BYTES", 500_000)
    assert found(path) == ["too_long end"]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_value_that_a_dictionary_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x" * 10_000] * 3000, data_page_version=version)
    rows = list(read_raw(path))
    sizes: list[int] = []
    monkeypatch.setattr(unpacked, "MAX_REPEATED_BYTES", 500_000)
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
    monkeypatch.setattr(unpacked, "MAX_RATIO", 100)
    assert found(path) == ["too_long end"]


def test_rows_of_an_arrow_dictionary_are_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = pyarrow.array(["x" * 600, "y"] * 50).dictionary_encode()
    table = pyarrow.table({"text": column})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    monkeypatch.setattr(columnar, "MAX_LINE_BYTES", 500)
    assert found(tmp_path / "a.arrow") == ["too_long", "ok"] * 50
