"""Inputs of several files: what names their content, and what becomes of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.expand import Expansion
from align.config.inputs import DataInput
from align.config.recipe import Recipe
from align.config.source import parse_text
from align.pipeline.inputs import import_inputs, resolve_inputs
from align.records import TextRow
from align.store.artifact import Artifact, Store


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "b.jsonl").write_text('{"id": "x", "text": "three"}\n')
    return folder


def _recipe(folder: Path, **spec: Any) -> Recipe:
    inputs = {"rows": DataInput.model_validate({"kind": "text", **spec})}
    if spec.get("decontaminate"):
        inputs["asked"] = DataInput(kind="prompts", path="asked.txt")
    document = parse_text("{}", label="recipe.yaml")
    return Recipe("r", 1, folder / "recipe.yaml", folder, inputs, {}, {}, document, Expansion({}, {}))


def _digest(folder: Path, **spec: Any) -> str:
    return resolve_inputs(_recipe(folder, **spec), Store(folder / "store"))[0]["rows"].fingerprint


def _imported(folder: Path, **spec: Any) -> Artifact:
    store = Store(folder / "store")
    return import_inputs(resolve_inputs(_recipe(folder, **spec), store)[0], store, lambda event: None)["rows"]


def test_rows_know_their_file_and_line(tmp_path: Path, shards: Path) -> None:
    artifact = _imported(tmp_path, path="shards/*.jsonl")
    rows = artifact.rows(TextRow)
    places = [(str(shards / "a.jsonl"), 1), (str(shards / "a.jsonl"), 2), (str(shards / "b.jsonl"), 1)]
    assert [(row.file, row.line) for row in rows] == places
    assert (artifact.manifest.rows_in, artifact.manifest.source) == (3, str(tmp_path / "shards/*.jsonl"))


def test_content_and_order_name_an_input_and_names_of_files_do_not(tmp_path: Path, shards: Path) -> None:
    before = _digest(tmp_path, path="shards")
    assert _digest(tmp_path, path="shards/*.jsonl") == before
    (shards / "b.jsonl").rename(shards / "c.jsonl")
    assert _digest(tmp_path, path="shards") == before
    (shards / "a.jsonl").rename(shards / "d.jsonl")
    assert _digest(tmp_path, path="shards") != before


def test_a_mixture(tmp_path: Path, shards: Path) -> None:
    parts = {"one": {"path": "shards/a.jsonl", "weight": 1.0}, "two": {"path": "shards/b.jsonl", "weight": 1.0}}
    artifact = _imported(tmp_path, mixture=parts)
    ids = [row.id for row in artifact.rows(TextRow)]
    assert [row_id.partition("/")[0] for row_id in ids] == ["one", "two"]
    assert ids[1] == "two/x"
    assert artifact.manifest.dropped == {"not_sampled": 1}
    (drop,) = [json.loads(line) for line in (artifact.path / "drops.jsonl").read_text().splitlines()]
    assert drop["id"].startswith("one/")
    heavier = {**parts, "one": {"path": "shards/a.jsonl", "weight": 2.0}}
    assert _digest(tmp_path, mixture=heavier) != artifact.fingerprint


def test_evaluation_prompts_decide_by_their_content_what_is_left(tmp_path: Path, shards: Path) -> None:
    asked = tmp_path / "asked.txt"
    asked.write_text("three\n")
    plain, held = _digest(tmp_path, path="shards"), _digest(tmp_path, path="shards", decontaminate=["asked"])
    artifact = _imported(tmp_path, path="shards", decontaminate=["asked"])
    assert artifact.manifest.dropped == {"overlaps_evaluation": 1}
    assert [row.text for row in artifact.rows(TextRow)] == ["one", "two"]
    asked.write_text("one\n")
    assert len({plain, held, _digest(tmp_path, path="shards", decontaminate=["asked"])}) == 3
    assert [row.text for row in _imported(tmp_path, path="shards", decontaminate=["asked"]).rows(TextRow)] == ["two", "three"]
