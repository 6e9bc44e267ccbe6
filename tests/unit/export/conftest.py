"""A run as align leaves one behind, made by hand: a base, an SFT, a reward model, a DPO, and their comparison."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from align.records import Message, Prompt
from align.report.results import build_results
from align.store.artifact import MODEL_FOLDER, ROWS_NAME, Entry, Manifest, write_rows
from align.store.atomic import write_json
from align.testing import scored_candidate, tiny_causal_lm, tiny_reward_model

TEXTS = ("우산을 잃어버렸어.", "I lost my keys.", "시험을 망쳤어.", "My cup broke.") * 4


@dataclass(frozen=True)
class Made:
    """The folder of a run, with the fingerprints of what is in its store."""

    run: Path
    store: Path
    texts: tuple[str, ...] = TEXTS

    def stage(self, name: str) -> Path:
        return self.run / "stages" / name


def manifest(kind: str, stage: str, digest: str, **more: Any) -> Manifest:
    fields: dict[str, Any] = {"stage_version": 1, "config": {}, "inputs": {}, "seed": 5, **more}
    return Manifest(kind=kind, stage=stage, fingerprint=digest, **fields)


def commit(store: Path, value: Manifest, fill: Callable[[Path], Any]) -> Path:
    entry = Entry(store / f"{value.stage}-{value.fingerprint}")
    entry.begin()
    fill(entry.path)
    entry.commit(value)
    return entry.path


def _results(folder: Path) -> None:
    answers = {
        model: [
            scored_candidate(
                {"rm": number / 10 + shift, "gold": (number % 3) / 3 + shift / 2},
                "속상했겠다",
                prompt_id=f"p{number}",
                prompt="?",
            )
            for number in range(12)
        ]
        for model, shift in (("sft", 0.0), ("dpo", 0.5))
    }
    results = build_results(
        answers,
        baseline="sft",
        recipe="tiny",
        command=["align", "run"],
        seed=5,
        engine_name="vllm",
        engine_version="0.32.0",
        bootstrap_resamples=200,
    )
    write_json(folder / "results.json", results.to_json())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Must not be written to."""
    runs = tmp_path_factory.mktemp("runs")
    store, run = runs / ".store", runs / "tiny"
    store.mkdir()
    (run / "stages").mkdir(parents=True)
    prompts = [Prompt(id=f"p{i}", prompt=[Message(role="user", content=text)]) for i, text in enumerate(TEXTS[:6])]
    source = str(runs / "home" / "me" / "held_out.jsonl")
    commit(
        store,
        manifest("prompts", "input", "f" * 16, source=source, seed=None, rows_out=6),
        lambda path: write_rows(path / ROWS_NAME, prompts),
    )
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": None, "max_completion_tokens": 8}
    entries = {
        "sft": commit(
            store,
            manifest(
                "model", "sft", "a" * 16, inputs={"base": "0" * 16}, input_sources={"base": "who/base@0123456789abcdef"},
                config={"model": "base", "learning_rate": 0.001, "num_workers": 3},
            ),
            lambda path: tiny_causal_lm(path / MODEL_FOLDER, texts=TEXTS, seed=1),
        ),
        "reward": commit(
            store,
            manifest(
                "reward_model", "reward_model", "b" * 16, inputs={"sft": "a" * 16},
                config={"model": "sft", "learning_rate": 0.001}, metrics={"held_out_accuracy": 0.875},
            ),
            lambda path: tiny_reward_model(path / MODEL_FOLDER, texts=TEXTS, seed=2),
        ),
        "pairs": commit(
            store,
            manifest("preferences", "pairs", "c" * 16, inputs={"reward": "b" * 16}, config={"scorer": "rm"}, dropped={"tie": 2}),
            lambda path: write_rows(path / ROWS_NAME, []),
        ),
        "dpo": commit(
            store,
            manifest(
                "model", "dpo", "d" * 16, inputs={"sft": "a" * 16, "pairs": "c" * 16},
                config={"model": "sft", "pairs": "pairs", "beta": 0.1, "learning_rate": 0.0001, "note": "한국어"},
                versions={"torch": "2.13.0"},
            ),
            lambda path: tiny_causal_lm(path / MODEL_FOLDER, texts=TEXTS, seed=3),
        ),
        "compare": commit(
            store,
            manifest(
                "comparison", "compare", "e" * 16,
                inputs={"sft": "a" * 16, "dpo": "d" * 16, "reward": "b" * 16, "held_out": "f" * 16},
                config={
                    "models": ["sft", "dpo"], "prompts": "held_out", "scorers": {"rm": "reward", "gold": {"rules": []}},
                    **sampling,
                },
            ),
            _results,
        ),
    }  # fmt: skip
    for name, path in entries.items():
        (run / "stages" / name).symlink_to(os.path.relpath(path, run / "stages"))
    return Made(run, store)


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM takes half a minute to start; one test has it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
