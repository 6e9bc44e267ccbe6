"""What a model argument may be, and what is said about everything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError, EnvironmentProblem, RecipeError
from align.export.lineage import comparisons_with, prompts_of, trace
from align.export.source import open_source, runs_of
from align.testing import tiny_causal_lm, tiny_reward_model
from align.testing.damage import overwrite


def test_a_stage_is_found_by_its_link_its_entry_and_its_model_folder(made: Any) -> None:
    entry = made.stage("dpo").resolve()
    for given in (made.stage("dpo"), entry, entry / "model"):
        source = open_source(given)
        assert (source.name, source.purpose, source.run) == ("dpo", "language", made.run)
        assert source.folder.path == entry / "model"
    assert open_source(made.stage("reward")).purpose == "reward"
    assert runs_of(entry) == [(made.run, "dpo")]


def test_a_model_folder_from_elsewhere(tmp_path: Path) -> None:
    source = open_source(tiny_causal_lm(tmp_path / "mine"))
    assert (source.name, source.purpose, source.artifact, source.run) == ("mine", "language", None, None)
    assert open_source(tiny_reward_model(tmp_path / "rm")).purpose == "reward"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("stages/dop", "unknown stage; did you mean 'dpo'?"),
        ("stages/pairs", "holds preferences, not a model"),
        ("", "is a run; its models are in stages/: dpo, reward, sft"),
        ("nowhere", "there is no such folder"),
        ("../.store", "holds no model"),
    ],
)
def test_what_is_no_model_is_refused(made: Any, given: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_source(made.run / given)
    assert said in caught.value.message
    assert caught.value.hint


def test_a_damaged_result_is_not_exported(made: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made.stage("dpo").resolve(), tmp_path / "dpo-x"))
    weights = copy / "model" / "model.safetensors"
    overwrite(weights, weights.read_bytes()[:-1])
    with pytest.raises(EnvironmentProblem, match=r"model/model.safetensors has \d+ bytes"):
        open_source(copy)


def test_encoder_decoder_models_are_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True, "architectures": ["T5Something"]}))
    with pytest.raises(AlignError, match="T5Something"):
        open_source(folder)


def test_the_lineage_is_in_the_order_it_was_made(made: Any) -> None:
    artifact = open_source(made.stage("dpo")).artifact
    assert artifact is not None
    steps = trace(artifact)
    assert [step.name for step in steps] == ["base", "sft", "reward", "pairs", "dpo"]
    assert (steps[0].stage, steps[0].kind, steps[0].source) == ("input", "model", "who/base@0123456789abcdef")


def test_what_is_gone_from_the_store_is_said(made: Any, tmp_path: Path) -> None:
    store = tmp_path / ".store"
    shutil.copytree(made.stage("dpo").resolve(), store / made.stage("dpo").resolve().name)
    artifact = open_source(store / made.stage("dpo").resolve().name).artifact
    assert artifact is not None
    assert [(step.name, step.kind) for step in trace(artifact)][:2] == [
        ("sft", "no longer in the store"),
        ("pairs", "no longer in the store"),
    ]


def test_comparisons_and_prompts_are_found_by_fingerprint(made: Any) -> None:
    source = open_source(made.stage("dpo"))
    assert source.artifact is not None
    (comparison,) = comparisons_with(source)
    assert (comparison.name, comparison.model) == ("compare", "dpo")
    assert comparison.row.scores["rm"].delta is not None
    assert comparison.is_trained_scorer("rm")
    assert not comparison.is_trained_scorer("gold")
    assert prompts_of(source, trace(source.artifact), [comparison]) == made.store / f"input-{'f' * 16}" / "rows.jsonl"
    assert comparisons_with(open_source(made.stage("reward"))) == []
