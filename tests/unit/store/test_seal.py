"""Small files of unfinished work: whole, of their place, and named where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.store.seal import SEAL, folder_problem, read_work, write_sealed, write_work


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "dpo-1" / "work" / "memory.json"
    path.parent.mkdir(parents=True)
    write_work(path, {"size": 4})
    return path


def read(path: Path) -> tuple[dict[str, object] | None, list[str]]:
    notes: list[str] = []
    return read_work(path, on_damage=notes.append), notes


def test_what_was_written_is_read(record: Path) -> None:
    assert read(record) == ({"size": 4}, [])
    assert read(record.with_name("other.json")) == (None, [])


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        (b": 4", b": 5", "was changed after it was written"),
        (b"{", b"[", "cannot be read: it is not the JSON that was written"),
        (SEAL.encode(), b"meal", "has no seal"),
    ],
)
def test_what_was_damaged_is_named_and_not_used(record: Path, before: bytes, after: bytes, problem: str) -> None:
    record.write_bytes(record.read_bytes().replace(before, after, 1))
    found, [note] = read(record)
    assert found is None
    assert note.startswith(f"memory.json {problem}")


def test_that_of_another_place_is_not_used(record: Path) -> None:
    other = record.parents[2] / "dpo-2" / "work" / "memory.json"
    other.parent.mkdir(parents=True)
    record.rename(other)
    assert read(other) == (None, ["memory.json is that of dpo-1/work/memory.json; it is not used"])


def test_a_seal_without_files_is_no_seal_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    seal = tmp_path / "checkpoint-1" / "checkpoint.json"
    write_sealed(seal, {"place": "checkpoint-1", "files": ["a"]})
    assert folder_problem(seal.parent, seal) == "checkpoint.json lists no files"
