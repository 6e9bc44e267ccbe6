"""Adapters through a whole recipe: whole models and adapters feed each other and stand in one comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align import load_recipe, run_recipe
from align.report.results import Results
from align.report.table import behaviour_columns

pytestmark = pytest.mark.slow

LORA, QLORA, PROMPT = (
    "peft: {method: lora, rank: 4}",
    "peft: {method: qlora, rank: 4}",
    "peft: {method: prompt_tuning, num_virtual_tokens: 4}",
)
STAGES = f"""\
  small:   {{stage: sft, model: base, data: instructions, learning_rate: 1e-2, batch_size: 8, max_tokens: 128, {PROMPT}}}
  packed:  {{stage: sft, model: base, data: instructions, learning_rate: 1e-2, batch_size: 2, max_tokens: 128, {QLORA}}}
  compare: {{stage: compare, models: [base, sft, rs, dpo, orpo, ppo, small, packed], baseline: base, prompts: held_out,
            retention: retention, max_completion_tokens: 8, max_prompt_tokens: 96, engine: transformers, shard_prompts: 4,
            bootstrap_resamples: 200, scorers: {{rm: reward}}}}
"""


@pytest.fixture(scope="module")
def finished(project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder; must not be written to. `rs` trains every weight on top of the adapter, the others train it further."""
    project = Path(shutil.copytree(project_template, tmp_path_factory.mktemp("adapters") / "project"))
    recipe = project / "recipe.yaml"
    text = recipe.read_text()
    for stage in ("sft", "reward", "orpo", "ppo", "dpo"):
        head = f"  {stage}:"
        start = text.index(head)
        text = text[:start] + text[start:].replace("}\n", f", {LORA}}}\n", 1)
    text = text[: text.index("  compare:")] + STAGES
    recipe.write_text(text)
    return run_recipe(load_recipe(recipe), project.parent / "runs").folder


def manifest_of(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages" / stage / "manifest.json").read_text())
    return found


def test_artifacts_say_what_they_are(finished: Path) -> None:
    kinds = {
        stage: manifest_of(finished, stage)["kind"] for stage in ("sft", "reward", "rs", "dpo", "orpo", "ppo", "small", "packed")
    }
    assert kinds.pop("rs") == "model"
    assert kinds.pop("reward") == "reward_adapter"
    assert set(kinds.values()) == {"adapter"}


def test_adapters_are_trained_and_kept_in_float32(finished: Path) -> None:
    """TRL would train the adapter of a 4-bit model in bfloat16."""
    for stage in ("sft", "reward", "dpo", "ppo", "small", "packed"):
        tensors = load_file(finished / "stages" / stage / "model" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_what_is_trained_further_is_its_own_reference(finished: Path) -> None:
    assert manifest_of(finished, "dpo")["metrics"]["loss_at_step_0"] == pytest.approx(0.693147, abs=1e-4)
    places = {
        json.loads((finished / "stages" / stage / "model" / "base.json").read_text())["place"] for stage in ("sft", "dpo", "ppo")
    }
    assert len(places) == 1


def test_the_comparison_says_what_each_training_took(finished: Path) -> None:
    results = Results.model_validate_json((finished / "results.json").read_text())
    trained = {name: model.trained_parameters for name, model in results.models.items()}
    assert trained["base"] is None
    assert trained["small"] == 4 * 32  # tokens x width
    assert trained["sft"] == trained["dpo"] == trained["packed"] < trained["rs"]  # type: ignore[operator]
    assert all(model.train_memory_bytes for name, model in results.models.items() if name != "base")
    assert [column.header for column in behaviour_columns(results)][-2:] == ["trained", "memory"]
