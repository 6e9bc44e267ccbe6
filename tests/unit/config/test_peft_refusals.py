"""What is said of a `peft` that cannot be: when the recipe is read, and by a stage that runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main

RECIPE = """\
name: tuned
inputs:
  base:         {kind: model, path: base}
  instructions: {kind: instructions, path: instructions.jsonl}
  comparisons:  {kind: preferences, path: preferences.jsonl}
  prompts:      {kind: prompts, path: prompts.jsonl}
stages:
  tuned: {STAGE}
"""
SFT = "{stage: sft, model: base, data: instructions, PEFT}"
REWARD = "{stage: reward_model, model: base, data: comparisons, PEFT}"
PPO = "{stage: ppo, model: base, prompts: prompts, scorers: {s: {rules: [{type: length, name: s, max_words: 9}]}}, PEFT}"


@pytest.fixture
def say(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit code and text of a command on a recipe with one stage."""
    monkeypatch.chdir(project)

    def call(command: str, stage: str, peft: str, recipe: str = RECIPE) -> tuple[int, str]:
        (project / "recipe.yaml").write_text(recipe.replace("{STAGE}", stage.replace("PEFT", peft)))
        code = main([command, "recipe.yaml"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.err

    return call


@pytest.mark.parametrize(
    ("stage", "peft", "place", "text"),
    [
        (SFT, "peft: {method: lora, rank: 0}", ".rank", "must be at least 1, got 0"),
        (SFT, "peft: {method: lora, dropout: 0.1}", ".dropout", "did you mean 'stages.tuned.dropout'? It goes beside 'peft'"),
        (SFT, "peft: {method: qloar}", ".method", "unknown method; did you mean 'qlora'?"),
        (SFT, "peft: {method: adapters}", ".method", "unknown method; valid: lora, qlora, prefix_tuning, prompt_tuning"),
        (SFT, "peft: {rank: 8}", "", "the key 'method' is missing; expected one of lora, qlora, prefix_tuning, prompt_tuning"),
        (SFT, "peft: {method: prefix_tunning}", ".method", "did you mean 'prefix_tuning'?"),
        (REWARD, "peft: {method: prefix_tuning}", "", "prefix_tuning cannot be used here: a score is read from a trained head"),
        (REWARD, "peft: {method: loar}", ".method", "did you mean 'lora'?"),
        (PPO, "peft: {method: prompt_tuning}", "", "prompt_tuning cannot be used here: completions share rows"),
    ],
)  # fmt: skip
def test_what_is_refused_when_a_recipe_is_read(say: Any, stage: str, peft: str, place: str, text: str) -> None:
    code, error = say("plan", stage, peft)
    assert code == 2
    assert len(error.splitlines()) <= 15
    assert "recipe.yaml:8:" in error and f"stages.tuned.peft{place}: " in error and text in error


def test_packing_does_not_go_with_virtual_tokens(say: Any) -> None:
    code, error = say("plan", SFT, "packing: true, peft: {method: prompt_tuning}")
    assert code == 2 and "recipe.yaml:8:" in error
    assert "packing: true does not go with prompt_tuning" in error and "leave packing out" in error
    for fine in ("packing: false, peft: {method: prompt_tuning}", "peft: {method: prompt_tuning}"):
        assert say("plan", SFT, fine)[0] == 0


def test_a_refusal_of_a_running_stage_is_told_as_well(say: Any) -> None:
    code, error = say("run", SFT, "peft: {method: lora, target_modules: [q_prj]}")
    assert code == 2
    assert "tuned: peft target_modules: the model has no linear layer 'q_prj'" in error and "Did you mean 'q_proj'?" in error


def test_an_adapter_whose_base_is_gone_is_told_as_well(say: Any, project: Path) -> None:
    assert say("run", SFT, "max_tokens: 96, num_epochs: 1, peft: {method: lora, rank: 2}")[0] == 0
    shutil.copytree(project / "runs" / "tuned" / "stages" / "tuned" / "model", project / "lonely")
    (project / "base").rename(project / "away")
    adapter = json.loads((project / "lonely" / "base.json").read_text())
    assert adapter["place"] == "../../base"
    generate = "{stage: generate, model: mine, prompts: prompts, max_prompt_tokens: 96, max_completion_tokens: 4, PEFT}"
    recipe = RECIPE.replace("base:         {kind: model, path: base}", "mine: {kind: model, path: lonely}")
    code, error = say("run", generate, "engine: transformers", recipe=recipe)
    assert code == 4
    assert "the base model of this adapter is gone" in error
