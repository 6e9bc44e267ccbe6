"""Reference log-probabilities are computed once, kept by content, and never trusted half-written or changed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.data.encoding import EncodedPreference
from align.errors import Interrupted, StageError
from align.models.load import load_causal_lm
from align.scoring.likelihood import completion_logps
from align.store.artifact import INPUT_STAGE, Artifact, FileEntry, Manifest
from align.store.fingerprint import FileHashes
from align.store.kept import KeptResult
from align.testing import Recorder, run_context
from align.testing.damage import flip, overwrite
from align.training.pairwise.collator import PairCollator
from align.training.pairwise.reference import compute_reference_logps
from align.training.pairwise.reference_store import ReferenceLogps, cached_reference_logps, reference_result
from align.training.pairwise.trainer import prepare_model

PAIRS = [EncodedPreference("a", [5, 6], [7, 8, 2], [9, 2]), EncodedPreference("b", [5], [2], [10, 11, 12, 2])]
ROWS = [
    ReferenceLogps(id="a", chosen_logps=-1.2345678901234567, rejected_logps=-2.5),
    ReferenceLogps(id="b", chosen_logps=-3.25, rejected_logps=-1e-9),
]


class Place(Recorder):
    """A store, notes, and how often the reference was computed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.result = KeptResult(root, "reference_logps", 1, {}, "reference log-probabilities")
        self.entry = self.result.entry.path
        super().__init__()
        self.computed = 0
        self.context = run_context(root / "work", emit=self.handle)

    def get(self, pairs: Sequence[EncodedPreference] = PAIRS) -> Any:
        return cached_reference_logps(self.result, pairs, self.context, self._compute)

    def _compute(self) -> list[ReferenceLogps]:
        self.computed += 1
        return ROWS


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_second_time_they_come_from_the_store_to_the_last_digit(place: Place) -> None:
    assert place.get() == {row.id: row for row in ROWS}
    assert place.get() == {row.id: row for row in ROWS}
    assert place.computed == 1
    assert "in the store" in place.notes[-1]


def test_rows_are_joined_by_id_not_by_place(place: Place) -> None:
    place.get()
    found = place.get(list(reversed(PAIRS)))
    assert found["a"].chosen_logps == ROWS[0].chosen_logps
    assert found["b"].chosen_logps == ROWS[1].chosen_logps


def flip_a_byte(entry: Path) -> None:
    flip(entry / "rows.jsonl")


def lose_a_row(entry: Path) -> None:
    lines = (entry / "rows.jsonl").read_bytes().splitlines(keepends=True)
    overwrite(entry / "rows.jsonl", lines[0])


def cut_the_manifest(entry: Path) -> None:
    overwrite(entry / "manifest.json", b'{"kind": "reference_')


@pytest.mark.parametrize("damage", [flip_a_byte, lose_a_row, cut_the_manifest])
def test_damage_is_set_aside_named_and_made_again(place: Place, damage: Any) -> None:
    place.get()
    damage(place.entry)
    assert place.get() == {row.id: row for row in ROWS}
    assert place.computed == 2
    assert "reference log-probabilities: damaged" in place.notes[-1]
    assert len(list(place.root.glob("quarantine-reference_logps-*"))) == 1
    assert place.get() == {row.id: row for row in ROWS}
    assert place.computed == 2


def test_what_is_whole_but_of_other_pairs_is_not_used(place: Place) -> None:
    place.get()
    place.get([*PAIRS, EncodedPreference("c", [1], [2], [3])])
    assert place.computed == 2
    assert "of other pairs" in place.notes[-1]


KILLED = """
import os, signal, sys
from pathlib import Path
from align.store.artifact import Entry
sys.path.insert(0, {tests!r})
from test_reference import Place
Entry.commit = lambda entry, manifest, seconds: os.kill(os.getpid(), signal.SIGKILL)
Place(Path({root!r})).get()
"""


def test_killed_between_rows_and_manifest_they_are_computed_again(place: Place) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(place.root))
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert (place.entry / "rows.jsonl").exists()
    (place.entry / "rows.jsonl").write_bytes(b'{"id": "a", "chosen_logps": 7.0')  # nothing of it may be read
    assert place.get() == {row.id: row for row in ROWS}
    assert place.computed == 1


def test_waiting_can_be_given_up(place: Place) -> None:
    from align.store.lock import hold

    place.context.stop_requested = lambda: signal.SIGTERM
    with hold(place.result.entry.lock_path, on_wait=lambda holder: None), pytest.raises(Interrupted) as caught:
        place.get()
    assert caught.value.exit_code == 143
    assert any("waiting for reference log-probabilities" in note for note in place.notes)


def artifact_of(path: Path, stage: str = INPUT_STAGE, **files: str) -> Artifact:
    entries = {name: FileEntry(size_bytes=1, sha256=digest) for name, digest in files.items()}
    manifest = Manifest(kind="model", stage=stage, stage_version=1, fingerprint="f", config={}, inputs={}, seed=1, files=entries)
    return Artifact("m", path, manifest)


def test_the_key_follows_weights_tokens_and_arithmetic(tmp_path: Path) -> None:
    hashes = FileHashes(None)

    def key(artifact: Artifact, pairs: Sequence[EncodedPreference] = PAIRS, precision: str = "float32") -> str:
        return reference_result(tmp_path, artifact, pairs, hashes, precision=precision).key

    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    (model / "config.json").write_text("{}")
    first = key(artifact_of(model))
    (model / "tokenizer.json").write_text("not weights")
    assert key(artifact_of(model)) == first
    assert key(artifact_of(model), precision="bfloat16") != first
    assert reference_result(tmp_path, artifact_of(model), PAIRS, hashes, precision="float32", tail_weight=0.5).key != first
    changes: list[dict[str, Any]] = [{"id": "x"}]
    changes += [{"prompt_token_ids": [5, 7]}, {"chosen_token_ids": [7, 2]}, {"rejected_token_ids": [7, 2]}]
    for change in changes:
        assert key(artifact_of(model), [dataclasses.replace(PAIRS[0], **change), PAIRS[1]]) != first, change
    # The border between prompt and completion counts.
    assert key(artifact_of(model), [EncodedPreference("a", [5, 6, 7], [8, 2], [9, 2]), PAIRS[1]]) != first
    (model / "config.json").write_text("{ }")
    second = key(artifact_of(model))
    assert second != first
    (model / "model.safetensors").write_bytes(b"two")
    assert key(artifact_of(model)) not in (first, second)
    # The same content made by a stage is the same reference, whatever else it left.
    made = {f"model/{name}": hashes.of(model / name) for name in ("model.safetensors", "config.json")}
    assert key(artifact_of(tmp_path, "sft", **made)) == key(artifact_of(model))
    assert key(artifact_of(tmp_path, "sft", **made, **{"epochs/epoch-1/model.safetensors": "0"})) == key(artifact_of(model))


def test_they_are_what_the_model_says(project_template: Path, place: Place) -> None:
    base = project_template / "base"
    collator = PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=1)
    rows = compute_reference_logps(prepare_model(load_causal_lm(base)), PAIRS, collator, place.context, precision="float32")
    sides = [(pair.prompt_token_ids, ids) for pair in PAIRS for ids in (pair.chosen_token_ids, pair.rejected_token_ids)]
    expected = completion_logps(load_causal_lm(base), sides, pad_token_id=0, batch_tokens=64)
    assert [row.id for row in rows] == ["a", "b"]
    assert [value for row in rows for value in (row.chosen_logps, row.rejected_logps)] == pytest.approx(expected, rel=1e-5)


def test_a_number_that_is_not_finite_is_an_error_with_the_row(project_template: Path, place: Place) -> None:
    model = prepare_model(load_causal_lm(project_template / "base"))
    model.base_model.norm.weight.data.fill_(float("nan"))
    collator = PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=1)
    with pytest.raises(StageError, match="b: the reference gives its completions the log-probabilities nan"):
        compute_reference_logps(model, PAIRS[1:], collator, place.context, precision="float32")
