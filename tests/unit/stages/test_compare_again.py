"""A comparison that finds answers, scores and likelihoods in the store gives the bytes of one that computes them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from align.models import load
from align.records import Message, Prompt, TextRow
from align.stages import compare
from align.store.artifact import Artifact, Entry, Manifest, write_rows
from align.testing import Recorder, input_artifact, stage_context
from align.testing.damage import overwrite
from align.testing.tiny import tiny_causal_lm, tiny_reward_model

pytestmark = pytest.mark.slow

TEXTS = ["hello there", "안녕하세요"]
RULES = {"rules": [{"type": "length", "name": "short", "max_characters": 9}]}


@dataclass
class Compared:
    """One comparison: its files, its notes and what it loaded."""

    output: Path
    notes: list[str]
    loaded: list[str]
    manifest_metrics: dict[str, Any]

    @property
    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.output.rglob("*") if path.is_file()]
        return {path.relative_to(self.output).as_posix(): path.read_bytes() for path in paths}


Compare = Callable[..., Compared]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("inputs")
    found = {}
    for seed, name in enumerate(("sft", "dpo", "orpo")):
        found[name] = input_artifact(name, tiny_causal_lm(folder / name, texts=TEXTS, seed=seed), "model")
    for seed, name in enumerate(("rm", "judge")):
        found[name] = input_artifact(name, tiny_reward_model(folder / name, texts=TEXTS, seed=7 + seed), "reward_model")
    rows: dict[str, list[Any]] = {
        "prompts": [Prompt(id=f"p{n}", prompt=[Message(role="user", content="hi " * (n + 1))], reference=None) for n in range(6)],
        "text": [TextRow(id=text, text=text * 3) for text in TEXTS],
    }
    for kind, values in rows.items():
        (folder / kind).mkdir()
        write_rows(folder / kind / "rows.jsonl", values)
        found[kind] = input_artifact(kind, folder / kind, kind)
    return found


@pytest.fixture
def run_compare(artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> Compare:
    loaded: list[str] = []
    read = load._load

    def watched(auto_class: Any, path: Path, **options: Any) -> Any:
        loaded.append(path.name)
        return read(auto_class, path, **options)

    monkeypatch.setattr(load, "_load", watched)

    def run(store: Path, label: str, **fields: Any) -> Compared:
        config = {
            "models": ["sft", "dpo"],
            "baseline": "sft",
            "prompts": "prompts",
            "retention": "text",
            "scorers": {"rm": "rm", "both": {"ensemble": ["rm", "judge"]}, "gold": RULES},
            "engine": "transformers",
            "num_candidates": 1,
            "max_completion_tokens": 6,
            "best_of": [1, 3],
            "bootstrap_resamples": 200,
        }
        loaded.clear()
        recorder = Recorder()
        context = stage_context(
            compare.Config.model_validate(config | fields), store / label, artifacts, seed=3, emit=recorder.handle
        )
        outcome = compare.run(context)
        return Compared(store / label, recorder.notes, list(loaded), outcome.metrics)

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_only_what_is_new_is_computed_and_the_bytes_are_those_of_an_empty_store(run_compare: Compare, tmp_path: Path) -> None:
    store, models = tmp_path / "store", ["sft", "dpo", "orpo"]
    first = run_compare(store, "first")
    assert set(first.loaded) == {"sft", "dpo", "rm", "judge"}
    assert not any("reused" in note for note in first.notes)
    more = run_compare(store, "more", models=models)
    # The baseline reads the new model's answers; the scorers score them, and look again for answers that fool them.
    assert set(more.loaded) == {"sft", "orpo", "rm", "judge"}
    assert more.loaded.count("sft") == 1
    assert more.notes == [
        "answers of sft, sft for best of n, dpo: reused from the store",
        "scores by rm of sft, sft for best of n, dpo: reused from the store",
        "scores by both of sft, sft for best of n, dpo: reused from the store",
        "scores by gold of sft, sft for best of n, dpo: reused from the store",
        "likelihoods of sft, dpo: reused from the store",
    ]
    assert more.files == run_compare(tmp_path / "empty", "more", models=models).files
    # Another option, and the same with another name.
    options = {
        "models": models,
        "bootstrap_resamples": 300,
        "best_of": [3],
        "deciding_scorer": "rm",
        "methods": {"po": models[1:]},
    }
    other = run_compare(store, "other", **options)
    assert other.loaded == []
    assert json.loads(other.files["results.json"])["bootstrap_resamples"] == 300
    assert other.files["answers/orpo.jsonl"] == more.files["answers/orpo.jsonl"]
    assert other.manifest_metrics["kept_seconds"] == other.manifest_metrics["reused_seconds"] > 0
    assert other.manifest_metrics["new_tokens"] == more.manifest_metrics["new_tokens"]
    # One scorer less: nothing but what was there.
    assert run_compare(store, "less", scorers={"gold": RULES}, models=["dpo", "sft"]).loaded == []
    # Another seed is another comparison.
    assert "sft" in run_compare(store, "longer", max_completion_tokens=5, scorers={"gold": RULES}).loaded


def test_damage_is_named_and_made_again(run_compare: Compare, store: Path) -> None:
    options: dict[str, Any] = {"scorers": {"gold": RULES}, "best_of": None}
    before = run_compare(store, "before", **options)
    for kind in ("answers", "scores", "likelihoods", "probes"):
        entry = next(path for path in store.glob(f"{kind}-*") if path.is_dir())
        victim = next(path for path in entry.iterdir() if path.name in ("rows.jsonl", "probes.json"))
        overwrite(victim, victim.read_bytes()[:-2])
    after = run_compare(store, "after", **options)
    damaged = [note for note in after.notes if "damaged" in note]
    assert [note.split()[0] for note in damaged] == ["answers", "scores", "probes", "likelihoods"]
    assert all("rows.jsonl has" in note or "probes.json has" in note for note in damaged)
    assert all("quarantine-" in note and "made again" in note for note in damaged)
    assert len(list(store.glob("quarantine-*"))) == 4
    assert after.files == before.files


def test_what_an_interruption_left_is_no_result(run_compare: Compare, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(entry: Entry, manifest: Manifest, **options: Any) -> Manifest:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"scorers": {"gold": RULES}, "best_of": None, "retention": None}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Entry, "commit", killed)
        run_compare(store, "killed", **options)
    again = run_compare(store, "again", **options)
    assert not any("reused" in note for note in again.notes)
    # The shards of the first model were whole, so it is loaded for its likelihoods alone.
    assert again.loaded == ["dpo", "sft", "dpo"]
