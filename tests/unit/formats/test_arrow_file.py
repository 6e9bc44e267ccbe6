"""Arrow files whose own description of themselves is wrong, by damage or on purpose."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from align.data.reader import read_raw
from align.formats import unpacked
from align.formats.raw import RawProblem
from align.formats.unpacked import ARROW_FILE_START

SCHEMA = pyarrow.schema([("text", pyarrow.string())])
BOMB = "x" * 1_000_000


def arrow_file(path: Path, *batches: list[str], is_file: bool = True) -> Path:
    new = pyarrow.ipc.new_file if is_file else pyarrow.ipc.new_stream
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.OSFile(str(path), "wb") as sink, new(sink, SCHEMA, options=options) as writer:
        for texts in batches:
            writer.write_batch(pyarrow.record_batch({"text": texts}))
    return path


def found(path: Path) -> list[Any]:
    """The texts, and the reasons of problems."""
    return [row.reason if isinstance(row, RawProblem) else row["text"] for _, row in read_raw(path)]


def batches(path: Path, start: int) -> list[tuple[int, int, int]]:
    """Of each batch: where it begins, where it says how long its body is, and that length."""
    content, found, place = path.read_bytes(), [], start
    with pyarrow.memory_map(str(path)) as source:
        source.seek(start)
        for message in pyarrow.ipc.MessageReader.open_stream(source):
            metadata = message.metadata.to_pybytes()
            place = content.index(metadata, place)
            if message.type == "record batch":
                size = message.body.size
                found.append((place - 8, place + metadata.index(struct.pack("<q", size)), size))
    return found


@pytest.mark.parametrize("is_file", [True, False])
def test_a_length_that_no_memory_has(tmp_path: Path, is_file: bool) -> None:
    """pyarrow takes the memory before it looks whether the file goes on; that is damage, and not a lack of memory."""
    path = arrow_file(tmp_path / "a.arrow", ["a", "가"], ["c"], is_file=is_file)
    assert found(path) == ["a", "가", "c"]
    _, (_, place, size) = batches(path, ARROW_FILE_START if is_file else 0)
    content = bytearray(path.read_bytes())
    content[place : place + 8] = struct.pack("<q", size + (1 << 50))
    path.write_bytes(content)
    assert found(path) == ["a", "가", "damaged_file"]


def test_a_footer_that_names_a_place_behind_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is read, whatever a footer says."""
    path = arrow_file(tmp_path / "a.arrow", ["a"], [BOMB])
    monkeypatch.setattr(unpacked, "FREE_BYTES", 500_000)
    assert found(path) == ["too_long"]
    _, (bomb, _, _) = batches(path, ARROW_FILE_START)
    end = b"\xff\xff\xff\xff\0\0\0\0"
    content = bytearray(path.read_bytes())
    content[bomb:bomb] = end
    in_footer = content.rindex(struct.pack("<q", bomb))
    content[in_footer : in_footer + 8] = struct.pack("<q", bomb + len(end))
    path.write_bytes(content)
    with pyarrow.ipc.open_file(path) as reader:
        assert reader.get_batch(1).to_pylist() == [{"text": BOMB}]
    assert found(path) == ["a", "damaged_file"]


def test_a_file_without_the_end_of_its_footer(tmp_path: Path) -> None:
    path = arrow_file(tmp_path / "a.arrow", ["a"], ["b"])
    path.write_bytes(path.read_bytes()[:-1])
    assert found(path) == ["damaged_file"]
