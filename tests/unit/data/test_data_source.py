"""Which files an input stands for, and what is said where that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.config.inputs import DataInput
from align.data.source import HubRows, Source, find_source, read_file, read_prefix
from align.data.validation.block import blocks_of
from align.errors import AlignError, DataError, RecipeError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "README.md").write_text("no data")
    return tmp_path


def _find(folder: Path, path: str, kind: str = "text", **columns: str) -> Source:
    return find_source(DataInput(kind=kind, path=path, columns=columns), lambda written: folder / written)


def _names(source: Source) -> list[str]:
    return [file.origin.name for file in source.files if isinstance(file.origin, Path)]


def test_a_file_a_glob_and_a_folder(shards: Path) -> None:
    assert _names(_find(shards, "b.jsonl")) == ["b.jsonl"]
    assert _names(_find(shards, "*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert _names(_find(shards, "")) == ["a.jsonl", "b.jsonl"]
    assert [row for file in _find(shards, "[a]*").files for _, row in read_file(file)] == [{"text": "a.jsonl"}]


def test_a_file_whose_name_looks_like_a_glob(shards: Path) -> None:
    (shards / "x[1].jsonl").write_text("{}")
    assert _names(_find(shards, "x[1].jsonl")) == ["x[1].jsonl"]


def test_lines_of_text_are_prompts_where_prompts_are_wanted(shards: Path) -> None:
    (shards / "c.txt").write_text("a\n")
    assert _find(shards, "c.txt", kind="prompts").files[0].columns == {"prompt": "text"}
    assert _find(shards, "c.txt").files[0].columns == {}


@pytest.mark.parametrize(
    ("path", "error", "told"),
    [
        ("aa.jsonl", DataError, "Did you mean"),
        ("no/such/a.jsonl", DataError, "there is: README.md, a.jsonl, b.jsonl"),
        ("*.csv", RecipeError, "no file fits"),
        ("README.md", DataError, "'.md'|.md says nothing"),
    ],
)
def test_what_is_not_there(shards: Path, path: str, error: type[AlignError], told: str) -> None:
    with pytest.raises(error, match=told):
        _find(shards, path)


def test_a_folder_of_several_formats_is_not_guessed(shards: Path) -> None:
    (shards / "c.csv").write_text("text\na\n")
    with pytest.raises(RecipeError, match=r"2 \.jsonl, 1 \.csv"):
        _find(shards, "")


def test_a_saved_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "x-2.arrow"}, {"filename": "x-1.arrow"}]}))
    (folder / "cache-1.arrow").write_bytes(b"")
    (folder / "x-1.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"x-2\.arrow is missing"):
        _find(folder, "")
    (tmp_path / "other.arrow").write_bytes(b"")
    state = (folder / "state.json").read_text()
    for name in ("../../other.arrow", str(tmp_path / "other.arrow"), "x" * 5000):
        (folder / "state.json").write_text(state.replace("x-2.arrow", name))
        with pytest.raises(DataError, match="is missing"):
            _find(folder, "")
    (folder / "state.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="does not list data files"):
        _find(folder, "")
    (folder / "state.json").write_text(state)
    (folder / "x-2.arrow").write_bytes(b"")
    assert _names(_find(folder, "")) == ["x-2.arrow", "x-1.arrow"]
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(RecipeError, match="several splits: train"):
        _find(tmp_path / "saved", "")


def test_parts_of_a_mixture(shards: Path) -> None:
    parts = {
        "one": {"path": "*.jsonl", "weight": 2.0, "columns": {"text": "t"}},
        "hub": {"dataset": "owner/rows", "split": "train", "weight": 1.0},
    }
    spec = DataInput.model_validate({"kind": "text", "mixture": parts})
    source = find_source(spec, lambda written: shards / written)
    origins = [shards / "a.jsonl", shards / "b.jsonl", HubRows("owner/rows", "train", None)]
    assert [(file.part, file.origin) for file in source.files] == list(zip(["one", "one", "hub"], origins, strict=True))
    assert source.weights == {"one": 2.0, "hub": 1.0}
    assert source.files[0].columns == {"text": "t"}


@pytest.mark.parametrize(
    "more",
    [
        {"path": "a.jsonl"},
        {"columns": {"text": "t"}},
        {"mixture": {"a/b": {"path": "a.jsonl", "weight": 1.0}}},
        {"mixture": {"a": {"path": "a.jsonl", "weight": 0.0}}},
        {"mixture": {"a": {"weight": 1.0}}},
        {"mixture": {}},
    ],
)
def test_mixtures_that_cannot_be_meant(more: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DataInput.model_validate({"kind": "text", "mixture": {"a": {"path": "a.jsonl", "weight": 1.0}}, **more})


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    for name, rows in {"a.jsonl": range(3), "b.jsonl": range(3, 6), "c.jsonl": range(6, 9)}.items():
        (tmp_path / name).write_text("".join(json.dumps({"text": str(row)}) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("max_rows", [1, 3, 4, 6, 99])
def test_a_limit_is_of_all_files_together(numbers: Path, max_rows: int) -> None:
    spec = DataInput(kind="text", path="*.jsonl", max_rows=max_rows)
    source = find_source(spec, lambda written: numbers / written)
    read = [row for block in blocks_of(source) for row in block.data]
    assert [row["text"] for _, row in read] == [str(row) for row in range(min(max_rows, 9))]  # type: ignore[misc, index]


def test_a_limit_is_of_one_part(numbers: Path) -> None:
    parts = {"one": {"path": "[ab].jsonl", "weight": 1, "max_rows": 4}, "two": {"path": "c.jsonl", "weight": 1}}
    source = find_source(DataInput.model_validate({"kind": "text", "mixture": parts}), lambda written: numbers / written)
    assert [len(block.data) for block in blocks_of(source) if isinstance(block.data, list)] == [3, 1]
    assert [len(rows) for rows in read_prefix(source, 9)] == [3, 1, 3]
    # Whether the limit leaves any row of the second file is not known without reading the first to its end.
    assert [len(rows) for rows in read_prefix(source, 2)] == [2, 0, 2]


def test_where_a_limit_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="max_rows counts from the first row of a split: write split: train"):
        DataInput(kind="text", dataset="a/b", split="train[10:]", max_rows=5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DataInput(kind="text", path="a.jsonl", max_rows=0)
    with pytest.raises(ValueError, match="a mixture has max_rows in each of its parts, not beside them"):
        DataInput.model_validate({"kind": "text", "mixture": {"a": {"path": "a.jsonl", "weight": 1.0}}, "max_rows": 5})
    assert "max_rows" not in DataInput(kind="text", path="a.jsonl").model_dump()
