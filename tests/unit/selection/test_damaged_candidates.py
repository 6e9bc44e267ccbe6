"""Parquet files of scored candidates that are damaged, or have types of which pyarrow makes an error: found by fuzzing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError, EnvironmentProblem, StageError
from align.selection.candidate import PromptCandidates
from align.selection.files import parquet
from align.selection.files.layout import lay_out
from align.selection.files.open import open_file
from align.selection.files.reader import RowFile

ROWS: dict[str, Any] = {"prompt_id": ["p", "p"], "prompt": ["x", "x"], "completion": ["a", "b"], "scores.rm": [1.0, 2.0]}


def read(path: Path, **columns: Any) -> list[PromptCandidates]:
    pq.write_table(pa.table({**ROWS, **columns}), path)
    return parts_of(path)


def parts_of(path: Path) -> list[PromptCandidates]:
    open_file(RowFile(path)).check()
    (task,) = lay_out([RowFile(path)]).tasks
    return list(task.parts(["rm"]))


def changed(path: Path, before: bytes, after: bytes) -> Path:
    pq.write_table(pa.table(ROWS), path, compression="none")
    content = path.read_bytes()
    path.write_bytes(content.replace(before, after))
    return path


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = changed(tmp_path / "x.parquet", b"completion", b"compl\xcdtion")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet \('utf-8' codec"):
        parts_of(path)


@pytest.mark.parametrize("text", [b"p", b"x", b"b"])
def test_a_text_that_is_not_utf8_in_any_column(tmp_path: Path, text: bytes) -> None:
    path = changed(tmp_path / "x.parquet", b"\x01\0\0\0" + text, b"\x01\0\0\0\xff")
    with pytest.raises(DataError, match=r"x\.parquet: a text is not UTF-8"):
        parts_of(path)


def test_candidate_indices_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for kind in (pa.uint8(), pa.int32(), pa.uint64()):
        (part,) = read(path, candidate_index=pa.array([0, 3], kind))
        assert part.indices == [0, 3]
    for wrong in (pa.array([0, 2**64 - 1], pa.uint64()), pa.array([0, -1], pa.int8())):
        with pytest.raises(DataError, match=r"x\.parquet:2: candidate_index: expected a whole number, 0 or more, of at most 63"):
            read(path, candidate_index=wrong)


def test_a_map_whose_keys_are_no_names(tmp_path: Path) -> None:
    path, scores = tmp_path / "x.parquet", pa.array([[(1, 1.0)], [(1, 2.0)]], pa.map_(pa.int64(), pa.float64()))
    (part,) = read(path, scores=scores)
    assert part.scores == [[1.0, 2.0]]  # of scores.rm
    pq.write_table(pa.table({**ROWS, "scores": scores}).drop(["scores.rm"]), path)
    with pytest.raises(StageError, match=r"x\.parquet: no score by 'rm'; it has none"):
        parts_of(path)


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError("64 bits"), pa.ArrowInvalid("wrong"), EOFError("ends")])
def test_what_pyarrow_says_of_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    read(tmp_path / "x.parquet")

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(parquet, "group_batch_rows", fails)
    with pytest.raises(DataError, match=rf"x\.parquet: damaged \({error}\)"):
        parts_of(tmp_path / "x.parquet")


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path / "x.parquet")

    def fails(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 1 failed")

    for name in ("group_batch_rows", "read_row_groups"):
        with monkeypatch.context() as patch:
            patch.setattr(parquet, name, fails)
            with pytest.raises(EnvironmentProblem, match=r"x\.parquet: the system gave no more memory"):
                parts_of(tmp_path / "x.parquet")
