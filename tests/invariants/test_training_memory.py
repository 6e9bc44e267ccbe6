"""Gradient checkpointing changes no byte of a result, and every optimizer learns and goes on after an interruption."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from align import load_recipe, run_recipe
from align.config.online import OnlineOptimization
from align.config.sections import OptimizerName
from align.errors import EnvironmentProblem, RecipeError
from align.models.head import last_hidden_states, target_logps
from align.models.load import load_causal_lm
from align.runtime.bitsandbytes_check import require_for_optimizer
from align.testing import tiny_causal_lm
from align.training.online.state import _load_moments, _moments
from align.training.optimizer import make_optimizer, moments_in_8_bits, recompute_layers

pytestmark = pytest.mark.slow

RECIPE = """\
name: memory
seed: 5
inputs:
  base:         {kind: model, path: base}
  instructions: {kind: instructions, path: instructions.jsonl}
  comparisons:  {kind: preferences, path: preferences.jsonl}
  prompts:      {kind: prompts, path: prompts.jsonl}
stages:
  sft: {stage: sft, model: base, data: instructions, OPTIONS}
  lora: {stage: sft, model: base, data: instructions, peft: {method: lora, rank: 2}, OPTIONS}
  dpo: {stage: dpo, model: base, pairs: comparisons, OPTIONS}
  reward: {stage: reward_model, model: base, data: comparisons, held_out_share: 0.3, OPTIONS}
  ppo: {stage: ppo, model: base, prompts: prompts, scorers: {rm: reward}, num_episodes: 16, rollout_batch_size: 8,
        mini_batch_size: 4, ppo_epochs: 2, learning_rate: 1e-3, max_completion_tokens: 8, max_prompt_tokens: 96,
        engine: transformers, precision: float32, EXTRA}
"""
OPTIONS = "learning_rate: 1e-3, num_epochs: 3, batch_size: 8, micro_batch_size: 4, max_tokens: 128, precision: float32, EXTRA"


def run(project: Path, out: str, extra: str) -> Path:
    (project / "recipe.yaml").write_text(RECIPE.replace("OPTIONS", OPTIONS).replace("EXTRA", extra))
    return run_recipe(load_recipe(project), project / out, in_process=True).folder / "stages"


def test_gradient_checkpointing_changes_no_byte(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in float32: packed rows, an adapter, shared prompts, scores, and PPO's two models."""
    counts: list[int] = []
    forward = LlamaDecoderLayer.forward

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        counts[-1] += torch.is_grad_enabled()
        return forward(self, *arguments, **options)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    folders = []
    for on in ("false", "true"):
        counts.append(0)
        folders.append(run(project, f"runs-{on}", f"gradient_checkpointing: {on}"))
    plain, recomputed = (
        {stage.name: b"".join(path.read_bytes() for path in stage.glob("model/*.safetensors")) for stage in folder.iterdir()}
        for folder in folders
    )
    assert len(plain) == 5
    assert all(plain.values())
    assert [name for name in plain if plain[name] != recomputed[name]] == []
    # Every layer of every pass that keeps a graph ran a second time.
    assert counts[1] == 2 * counts[0]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_learns(project: Path, name: str) -> None:
    folder = run(project, "runs", f"optimizer: {name}")
    for stage in ("sft", "lora", "dpo", "reward", "ppo"):
        rows = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
        if stage != "ppo":
            losses = [row["loss"] for row in rows if "loss" in row]
            assert losses[-1] < losses[0], (stage, losses)
    trained = load_causal_lm(folder / "ppo" / "model").state_dict()
    before = load_causal_lm(project / "base").state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, trained[name])]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_an_optimizer_goes_on_where_it_was(name: OptimizerName) -> None:
    """What PPO's checkpoints keep of it is all that decides the next step."""
    config = OnlineOptimization(optimizer=name)
    torch.manual_seed(0)
    start, gradients = torch.randn(80, 60), torch.randn(6, 80, 60)

    def advance(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            parameter.grad = gradients[step].clone()
            optimizer.step()

    whole = torch.nn.Parameter(start.clone())
    optimizer = make_optimizer([whole], config, learning_rate=1e-2)
    advance(whole, optimizer, range(3))
    kept = {key: value.clone() for key, value in _moments(optimizer)}  # as a file would keep it
    resumed, forgetful = (torch.nn.Parameter(whole.detach().clone()) for _ in range(2))
    fresh = make_optimizer([resumed], config, learning_rate=1e-2)
    _load_moments(fresh, kept)
    advance(whole, optimizer, range(3, 6))
    advance(resumed, fresh, range(3, 6))
    advance(forgetful, make_optimizer([forgetful], config, learning_rate=1e-2), range(3, 6))
    assert torch.equal(whole, resumed)
    assert not torch.equal(whole, forgetful)


def test_moments_of_embeddings_are_in_8_bits_too() -> None:
    """As transformers makes the optimizer, which asks bitsandbytes for 32 bits of them."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    embedding = torch.nn.Embedding(64, 256)
    optimizer = bitsandbytes.optim.AdamW8bit(embedding.parameters())
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.register_module_override(embedding, "weight", {"optim_bits": 32})
    moments_in_8_bits(optimizer)
    embedding(torch.arange(8)).sum().backward()
    optimizer.step()
    assert optimizer.state[embedding.weight]["state1"].dtype == torch.uint8
    assert manager.module_weight_config_triple == []


def test_autocast_keeps_no_copies_of_weights_where_layers_are_computed_again(project: Path) -> None:
    model: Any = load_causal_lm(project / "base")
    recompute_layers(model, "it")
    cached = []
    model.model.layers[-1].mlp.register_forward_pre_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    ids = torch.tensor([[5, 6, 7]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = target_logps(model, last_hidden_states(model, input_ids=ids)[0], ids[0])
    logps.sum().backward()
    assert cached == [False, False]
    assert torch.is_autocast_cache_enabled()


def test_what_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_for_optimizer("adafactor", "sft")
    with pytest.raises(EnvironmentProblem, match="sft: optimizer: adamw_8bit needs bitsandbytes"):
        require_for_optimizer("adamw_8bit", "sft")
    model: Any = load_causal_lm(tiny_causal_lm(tmp_path / "model"))
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match=r"ppo: gradient_checkpointing: .* \(llama\)"):
        recompute_layers(model, "ppo")
