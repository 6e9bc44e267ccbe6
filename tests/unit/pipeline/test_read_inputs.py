"""A stage works on inputs that it has read and found undamaged; what is damaged is named, and set aside if it is a result."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.errors import EnvironmentProblem
from align.models.adapter import base_fingerprint
from align.pipeline.read_inputs import verify_inputs
from align.runtime.events import Event, Quarantined
from align.store import fingerprint
from align.store.artifact import Entry, FileEntry, Manifest, Store
from align.store.fingerprint import FileHashes
from align.testing import input_artifact
from align.testing.damage import flip, overwrite, rot


class Place:
    """A store with a trained model, rows made with it, an adapter on it, and a user's base model beside it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / ".store")
        self.user = root / "base"
        self.user.mkdir()
        for name in ("config.json", "model.safetensors"):
            (self.user / name).write_text(f"{{}} {name}")
        files = {
            path.name: FileEntry(size_bytes=path.stat().st_size, sha256=self.store.hashes.of(path))
            for path in self.user.iterdir()
        }
        self.store.hashes.save()
        base = input_artifact("base", self.user, "model")
        self.artifacts = {"base": replace(base, manifest=base.manifest.model_copy(update={"files": files}))}
        self.add("sft", {"model/config.json": "{}", "model/model.safetensors": "weights", "epochs/epoch-1/x": "1"}, base="b")
        self.add("generate", {"rows.jsonl": "{}\n", "drops.jsonl": ""}, sft="s")
        place = os.path.relpath(self.artifacts["sft"].model_path, self.store.root)
        digest = base_fingerprint(self.artifacts["sft"].model_path, FileHashes(None))
        peft = {"method": "lora", "rank": 2}
        record = json.dumps({"place": place, "fingerprint": digest, "peft": peft})
        self.add("dpo", {"model/adapter_config.json": "{}", "model/base.json": record, "metrics.jsonl": ""}, sft="s")
        self.events: list[Event] = []

    def add(self, stage: str, files: dict[str, str], **inputs: str) -> None:
        entry = self.store.entry(stage, "0" * 16)
        entry.begin()
        for name, content in files.items():
            (entry.path / name).parent.mkdir(parents=True, exist_ok=True)
            (entry.path / name).write_text(content)
        fields: dict[str, Any] = {"kind": "model", "stage": stage, "stage_version": 1, "fingerprint": "0" * 16}
        entry.commit(Manifest(**fields, config={}, inputs=inputs, seed=1))
        self.artifacts[stage] = self.store.load(stage, entry)

    def verify(self, *inputs: str, **reads: bool) -> None:
        verify_inputs(self.artifacts, inputs, self.store.root, self.events.append, **reads)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path.resolve())


def test_what_is_whole_is_read_once_and_only_what_the_stage_reads(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    original = fingerprint.sha256_of_file
    monkeypatch.setattr(fingerprint, "sha256_of_file", lambda path: reads.update([path.name]) or original(path))
    place.verify("base", "dpo")
    assert reads == Counter(
        {"adapter_config.json": 1, "base.json": 1, "metrics.jsonl": 1, "config.json": 2, "model.safetensors": 2}
    ), "the adapter, the model that it is on, and the user's model; no epoch and no rows"
    reads.clear()
    place.verify("sft", epochs=True)
    assert reads["x"] == 1
    reads.clear()
    place.verify("base", origins=True)
    assert reads["rows.jsonl"] == reads["metrics.jsonl"] == 1


@pytest.mark.parametrize(
    ("damaged", "file", "inputs", "reads"),
    [
        ("sft", "model/model.safetensors", ["sft"], {}),
        ("sft", "model/model.safetensors", ["dpo"], {}),
        ("sft", "epochs/epoch-1/x", ["sft"], {"epochs": True}),
        ("generate", "rows.jsonl", ["generate"], {}),
        ("generate", "rows.jsonl", ["sft"], {"origins": True}),
        ("dpo", "model/base.json", ["dpo"], {}),
    ],
)
def test_a_damaged_result_is_named_and_set_aside(
    place: Place, damaged: str, file: str, inputs: list[str], reads: dict[str, bool]
) -> None:
    path = place.artifacts[damaged].path
    flip(path / file)
    with pytest.raises(EnvironmentProblem) as caught:
        place.verify(*inputs, **reads)
    assert f"{damaged}: {path}: damaged: {file} does not have the content it was written with (sha256" in str(caught.value)
    assert "Run the same command again" in str(caught.value)
    assert [type(event) for event in place.events] == [Quarantined]
    assert not path.exists()
    assert len(list(place.store.root.glob(f"quarantine-{path.name}-*"))) == 1


def test_rot_that_a_plan_cannot_see_is_seen_here(place: Place) -> None:
    rot(place.artifacts["generate"].path / "rows.jsonl")
    entry = Entry(place.artifacts["generate"].path)
    assert entry.check(entry.known_hashes)[0] == "done"
    with pytest.raises(EnvironmentProblem, match=r"generate: .*rows.jsonl does not have the content"):
        place.verify("generate")


def test_a_users_changed_file_is_named_and_stays(place: Place) -> None:
    flip(place.user / "model.safetensors")
    with pytest.raises(EnvironmentProblem) as caught:
        place.verify("base")
    assert f"base: {place.user / 'model.safetensors'}: is not the file that was planned with (sha256" in str(caught.value)
    assert "It is your file, and stays" in str(caught.value)
    assert place.events == []
    (place.user / "model.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match="was removed while it was needed"):
        place.verify("base")


def test_all_that_is_damaged_is_named(place: Place) -> None:
    for file in (place.user / "config.json", place.artifacts["sft"].path / "model" / "config.json"):
        overwrite(file, b"[]")
    with pytest.raises(EnvironmentProblem, match="2 inputs of this stage are damaged") as caught:
        place.verify("base", "sft")
    assert len(caught.value.render().splitlines()) <= 15


def test_a_result_of_another_store_is_not_moved(place: Place, tmp_path: Path) -> None:
    rows = place.artifacts["generate"].path / "rows.jsonl"
    overwrite(rows, b"[]\n")
    other = tmp_path / "others" / ".store"
    with pytest.raises(EnvironmentProblem, match="generate: .*damaged: rows.jsonl") as caught:
        verify_inputs(place.artifacts, ["generate"], other, place.events.append)
    assert "align store verify" in str(caught.value)
    assert rows.exists()
    assert place.events == []


def test_a_base_outside_the_run_counts_too(place: Place, tmp_path: Path) -> None:
    only = {"dpo": place.artifacts["dpo"]}
    verify_inputs(only, ["dpo"], tmp_path / "others" / ".store", place.events.append)
    rot(place.artifacts["sft"].path / "model" / "model.safetensors")
    with pytest.raises(EnvironmentProblem, match=r"dpo: .*is not the base model that the adapter"):
        verify_inputs(only, ["dpo"], tmp_path / "others" / ".store", place.events.append)


def test_what_was_removed_or_made_again_meanwhile_is_not_used(place: Place) -> None:
    before = dict(place.artifacts)
    place.add("generate", {"rows.jsonl": "other rows\n"}, sft="s")
    place.artifacts = before
    with pytest.raises(EnvironmentProblem, match="another result took its place"):
        place.verify("generate")
    Entry(before["generate"].path).quarantine()
    with pytest.raises(EnvironmentProblem, match="was removed while it was needed"):
        place.verify("generate")
