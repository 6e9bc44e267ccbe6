"""Folders that are exported: whole, checked and loadable, or absent."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align.errors import EnvironmentProblem, RecipeError, StageError
from align.export import export_model, open_source, write_model
from align.export import folder as export_folder
from align.testing import tiny_causal_lm, tiny_reward_model

pytestmark = pytest.mark.slow


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("without_vllm")
def test_an_export_is_the_model_with_all_that_belongs_to_it(made: Any, tmp_path: Path) -> None:
    result = export_model(open_source(made.stage("dpo")), tmp_path / "out" / "dpo")
    assert names(tmp_path / "out") == ["dpo"]
    assert names(result.folder) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    ours = AutoModelForCausalLM.from_pretrained(result.folder)
    theirs = AutoModelForCausalLM.from_pretrained(made.stage("dpo") / "model")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.config.use_cache
    assert AutoTokenizer.from_pretrained(result.folder).chat_template
    (check,) = result.checks
    assert (check.compared, check.ties, check.own_prompts) == (50, 0, 6)
    assert (result.folder / "model.safetensors").stat().st_mode == (result.folder / "config.json").stat().st_mode


def test_generation_settings_are_those_that_were_measured(made: Any, tmp_path: Path) -> None:
    export_model(open_source(made.stage("dpo")), tmp_path / "dpo", check=False)
    settings = json.loads((tmp_path / "dpo" / "generation_config.json").read_text())
    expected = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "eos_token_id": 2, "pad_token_id": 0}
    assert {key: settings[key] for key in expected} == expected
    assert "max_new_tokens" not in settings


def test_bfloat16_is_checked_against_bfloat16(made: Any, tmp_path: Path, without_vllm: None) -> None:
    result = export_model(open_source(made.stage("sft")), tmp_path / "sft", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(result.folder).dtype == torch.bfloat16
    assert result.checks[0].compared == 50
    assert "weights in bfloat16" in (result.folder / "README.md").read_text()


def test_a_reward_model_gives_the_same_scores(made: Any, tmp_path: Path) -> None:
    result = export_model(open_source(made.stage("reward")), tmp_path / "rm", dtype="bfloat16")
    assert "score.weight" in AutoModelForSequenceClassification.from_pretrained(result.folder).state_dict()
    assert result.checks[0].compared == 50
    assert not (result.folder / "generation_config.json").exists()


@pytest.mark.usefixtures("without_vllm")
@pytest.mark.parametrize("kind", ["language", "reward"])
def test_a_difference_is_told_and_leaves_nothing(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The weights are swapped behind the check's back."""

    def write_another(source, folder: Path, **options) -> str:  # type: ignore[no-untyped-def]
        dtype = write_model(source, folder, **options)
        maker = tiny_causal_lm if kind == "language" else tiny_reward_model
        other = maker(tmp_path / "other", texts=made.texts, seed=77)
        (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
        return dtype

    monkeypatch.setattr(export_folder, "write_model", write_another)
    stage = "dpo" if kind == "language" else "reward"
    with pytest.raises(StageError) as caught:
        export_model(open_source(made.stage(stage)), tmp_path / "out" / "it")
    assert ("우산을 잃어버렸어." if kind == "language" else "capital of France") in caught.value.message
    assert "as its source" in caught.value.message or "than its source" in caught.value.message
    assert len(caught.value.render().splitlines()) <= 15
    assert names(tmp_path / "out") == []


def test_an_existing_folder_is_never_written_to(made: Any, tmp_path: Path) -> None:
    source = open_source(made.stage("sft"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(RecipeError, match="exists and is not an empty folder"):
            export_model(source, target, check=False)
    assert names(tmp_path / "full") == ["mine.txt"]
    with pytest.raises(RecipeError, match="inside the model"):
        export_model(source, source.folder.path / "exported", check=False)
    (tmp_path / "empty").mkdir()
    assert export_model(source, tmp_path / "empty", check=False).folder == tmp_path / "empty"
    assert "Not checked" in (tmp_path / "empty" / "README.md").read_text()


def test_a_folder_that_appears_meanwhile_is_kept(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"

    def write_late(source, folder: Path, **options) -> str:  # type: ignore[no-untyped-def]
        target.mkdir()
        (target / "theirs").write_text("theirs")
        return write_model(source, folder, **options)

    monkeypatch.setattr(export_folder, "write_model", write_late)
    with pytest.raises(RecipeError, match="something else was written there meanwhile"):
        export_model(open_source(made.stage("sft")), target, check=False)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["theirs"]


def test_a_full_disk_is_told_before_anything_is_written(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(export_folder.shutil, "disk_usage", lambda path: Usage)  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentProblem, match="the disk is full; it needs more than"):
        export_model(open_source(made.stage("sft")), tmp_path / "out" / "sft", check=False)
    assert names(tmp_path / "out") == []


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_gives_the_same_tokens(made: Any, tmp_path: Path) -> None:
    result = export_model(open_source(made.stage("dpo")), tmp_path / "dpo")
    assert [check.where.split()[0] for check in result.checks] == ["transformers", "vLLM"]
    assert "vLLM" in (result.folder / "README.md").read_text()
