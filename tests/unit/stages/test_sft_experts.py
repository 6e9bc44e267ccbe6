"""A mixture of experts is trained, keeps its configuration, and can be sampled from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from align import load_recipe, run_recipe
from align.testing.project import write_jsonl
from align.testing.tiny import tiny_tokenizer
from align.training.trl_trainers import ROUTER_SETTINGS

RECIPE = """\
name: experts
inputs:
  base: {kind: model, path: base}
  instructions: {kind: instructions, path: instructions.jsonl}
  prompts: {kind: prompts, path: instructions.jsonl, columns: {prompt: prompt}}
stages:
  sft: {stage: sft, model: base, data: instructions, batch_size: 4, max_tokens: 64}
  candidates: {stage: generate, model: sft, prompts: prompts, engine: transformers, max_completion_tokens: 4, num_candidates: 1}
"""
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def test_a_trained_mixture_of_experts_can_be_sampled_from(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    config = Qwen3MoeConfig(**SIZES, **experts, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    write_jsonl(tmp_path / "instructions.jsonl", ({"prompt": f"Say {n}.", "completion": f"It is {n}."} for n in range(4)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "runs", in_process=True).folder
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "base", run / "stages" / "sft" / "model")
    )
    assert [after[name] for name in ROUTER_SETTINGS] == [before[name] for name in ROUTER_SETTINGS] == [False, 0.001]
