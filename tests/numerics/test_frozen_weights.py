"""Frozen weights in bfloat16, as on a GPU that computes it; the decision is forced here, the arithmetic is the CPU's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align import load_recipe, run_recipe
from align.config.peft import Lora
from align.models.folder import ModelFolder
from align.models.trainable import TrainableModel, load_trainable
from align.runtime import device
from align.runtime.device import frozen_dtype
from align.scoring.likelihood import LikelihoodModel
from align.scoring.reward_model import RewardModelScorer
from align.testing import random_pairs, tiny_causal_lm, tiny_reward_model

Force = Callable[[bool], None]
PAIRS = random_pairs(64, seed=2, prompt_tokens=20, completion_tokens=30)
ROWS = [(pair.prompt_token_ids, pair.chosen_token_ids) for pair in PAIRS]


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    return lambda has: monkeypatch.setattr(device, "has_bfloat16", lambda: has)


def test_a_cpu_keeps_float32_and_so_does_precision_float32(force: Force) -> None:
    assert (frozen_dtype(), frozen_dtype("bfloat16")) == ("float32", "float32")
    force(True)
    assert (frozen_dtype(), frozen_dtype("bfloat16"), frozen_dtype("float32")) == ("bfloat16", "bfloat16", "float32")


def in_both(force: Force, compute: Callable[[], list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    found = []
    for has in (False, True):
        force(has)
        found.append(torch.tensor(compute(), dtype=torch.float64))
    return found[0], found[1]


def test_log_probabilities_are_near_those_of_float32(force: Force, tmp_path: Path) -> None:
    folder = ModelFolder(tiny_causal_lm(tmp_path / "model"))
    exact, rounded = in_both(force, lambda: LikelihoodModel(folder, batch_tokens=512).completion_logps(ROWS))
    # Nats, sums over 14 tokens on average, from -6 to -170. Measured: 0.0182, at most 0.05.
    assert 0 < (rounded - exact).square().mean().sqrt() < 0.03
    assert (rounded - exact).abs().max() < 0.1


def test_scores_are_near_those_of_float32(force: Force, tmp_path: Path) -> None:
    folder = ModelFolder(tiny_reward_model(tmp_path / "model"))
    exact, rounded = in_both(
        force, lambda: RewardModelScorer(folder, batch_tokens=512).score_rows([(prompt, chosen) for prompt, chosen in ROWS])
    )
    # The scores have a standard deviation of 0.57. Measured: 0.0069.
    assert 0 < (rounded - exact).square().mean().sqrt() < 0.01


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_learns_is_float32(tmp_path: Path, method: Any) -> None:
    folder = ModelFolder(tiny_causal_lm(tmp_path / "model"))
    start = TrainableModel(folder, Lora(method=method, rank=2), tmp_path, "test")
    model = load_trainable(start, task="SEQ_CLS", new_head=True, frozen_dtype="bfloat16")
    types = {(value.requires_grad, value.dtype) for value in model.parameters() if value.dtype != torch.uint8}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    # Positions are encoded by frequencies, which are no weights.
    assert {value.dtype for name, value in model.named_buffers() if "inv_freq" in name} == {torch.float32}
    if method == "qlora":
        layers = [layer for layer in model.modules() if hasattr(layer, "compute_dtype")]
        assert layers
        assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


STAGES = """\
name: frozen
seed: 5
inputs:
  base:         {kind: model, path: base}
  instructions: {kind: instructions, path: instructions.jsonl}
  comparisons:  {kind: preferences, path: preferences.jsonl}
  prompts:      {kind: prompts, path: prompts.jsonl}
stages:
  sft: {stage: sft, model: base, data: instructions, OPTIONS}
  qlora: {stage: sft, model: base, data: instructions, QLORA}
  dpo: {stage: dpo, model: sft, pairs: comparisons, OPTIONS}
  dpo_base: {stage: dpo, model: sft, reference: base, pairs: comparisons, OPTIONS}
  reward: {stage: reward_model, model: base, data: comparisons, held_out_share: 0.3, OPTIONS}
  ppo: {stage: ppo, model: base, prompts: prompts, scorers: {rm: reward}, num_episodes: 16, rollout_batch_size: 8,
        mini_batch_size: 4, ppo_epochs: 2, learning_rate: 1e-3, max_completion_tokens: 8, max_prompt_tokens: 96,
        engine: transformers, precision: bfloat16, peft: {method: lora, rank: 2}}
"""
OPTIONS = "learning_rate: 1e-3, batch_size: 4, max_tokens: 128, precision: bfloat16, peft: {method: lora, rank: 2}"


def test_every_method_learns_on_a_frozen_base_in_bfloat16(force: Force, project: Path) -> None:
    """Both trainings compute in bfloat16; they differ in what the frozen weights are kept in."""
    (project / "recipe.yaml").write_text(STAGES.replace("OPTIONS", OPTIONS).replace("QLORA", OPTIONS.replace("lora", "qlora")))
    found = []
    for has in (False, True):
        force(has)
        folder = run_recipe(load_recipe(project), project / f"runs-{has}", in_process=True).folder / "stages"
        found.append({path.name: json.loads((path / "manifest.json").read_text())["metrics"] for path in folder.iterdir()})
    plain, frozen = found
    for stage in ("sft", "qlora", "dpo", "dpo_base", "reward"):
        name = "loss" if stage.startswith("dpo") else "train_loss"
        # Measured: 2e-3 and less.
        assert frozen[stage][name] == pytest.approx(plain[stage][name], rel=0.01)
        assert frozen[stage][name] != plain[stage][name]
    for stage in ("dpo", "dpo_base", "reward"):  # rounding does not look like a model that cannot share prompts
        assert frozen[stage]["batch_form"] == "shared_prompt"
    assert frozen["reward"]["score_spread"] == pytest.approx(plain["reward"]["score_spread"], rel=0.02)
    assert frozen["ppo"]["scores_first"] == pytest.approx(plain["ppo"]["scores_first"], abs=0.02)
    assert frozen["ppo"]["rollout/sampler_gap"] < 0.01  # measured: 0.0032, and 0.0031 with a base in float32
