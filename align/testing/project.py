"""A whole project in a folder: a tiny base model, data in two languages, and a recipe with every stage. Runs in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align.testing.tiny import tiny_causal_lm

MISHAPS = (
    ("I lost my keys", "keys"),
    ("I broke my cup", "cup"),
    ("열쇠를 잃어버렸어", "열쇠"),
    ("시험을 망쳤어", "시험"),
    ("My train was late", "train"),
    ("우산을 두고 왔어", "우산"),
)
KIND = ("Oh no, I am so sorry about that.", "That must hurt.", "속상했겠다.", "정말 힘들었겠구나.")
CURT = ("You should be more careful.", "Try again.", "다음부터 조심해.", "계획을 세워.")

INPUTS = """\
inputs:
  base:         {{kind: model, path: base}}
  instructions: {{kind: instructions, path: instructions.jsonl}}
  comparisons:  {{kind: preferences, path: preferences.jsonl}}
  prompts:      {{kind: prompts, path: prompts.jsonl}}
  held_out:     {{kind: prompts, path: held_out.jsonl}}
  retention:    {{kind: text, path: retention.txt}}
"""
"""Of a recipe whose files stand beside it; a template, as the recipes are."""
RECIPE = (
    f"name: tiny\nseed: 5\n{INPUTS}"
    """\
stages:
  sft:     {{stage: sft, model: base, data: instructions, num_epochs: 3, learning_rate: 1e-3, batch_size: 2, max_tokens: 128,
            checkpoint_steps: 2}}
  reward:  {{stage: reward_model, model: sft, data: comparisons, learning_rate: 1e-3, batch_size: 4, max_tokens: 128,
            held_out_share: 0.3, checkpoint_steps: 2}}
  sampled: {{stage: generate, model: sft, prompts: prompts, num_candidates: 3, max_completion_tokens: 8, max_prompt_tokens: 96,
            engine: {engine}, shard_prompts: 4}}
  scored:  {{stage: score, candidates: sampled, scorers: {{rm: reward}}}}
  best:    {{stage: best_of_n, scored: scored, scorer: rm, keep_truncated: true}}
  rs:      {{stage: sft, model: sft, data: best, learning_rate: 1e-3, batch_size: 2, max_tokens: 128}}
  pairs:   {{stage: pairs, scored: scored, scorer: rm, keep_truncated: true}}
  orpo:    {{stage: orpo, model: sft, pairs: pairs, learning_rate: 1e-3, batch_size: 4, max_tokens: 128, checkpoint_steps: 2}}
  ppo:     {{stage: ppo, model: sft, prompts: prompts, scorers: {{rm: reward}}, num_episodes: 24, rollout_batch_size: 8,
            mini_batch_size: 4, ppo_epochs: 2, learning_rate: 1e-3, max_completion_tokens: 8, max_prompt_tokens: 96,
            engine: {engine}, checkpoint_steps: 1}}
  dpo:     {{stage: dpo, model: sft, pairs: pairs, num_epochs: 3, learning_rate: 1e-3, batch_size: 4, max_tokens: 128,
            checkpoint_steps: 2}}
  compare: {{stage: compare, models: [sft, rs, dpo], baseline: sft, prompts: held_out, retention: retention,
            max_completion_tokens: 8, max_prompt_tokens: 96, engine: {engine}, shard_prompts: 4, bootstrap_resamples: 200,
            scorers: {{rm: reward, length: {{rules: [{{type: length, name: short, max_characters: 12}}]}}}}}}
"""
)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a row per line, Korean text as it is."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def tiny_project(folder: Path, *, engine: str = "transformers") -> Path:
    """Write the project and return the path of its recipe.

    Args:
        folder: created if absent.
        engine: the engine that samples; vllm takes longer to start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [f"{text}{mark}" for text, _ in MISHAPS for mark in (".", "!", " ...", " :(")]
    tiny_causal_lm(folder / "base", texts=[*prompts, *KIND, *CURT] * 4, seed=1)
    write_jsonl(
        folder / "instructions.jsonl",
        ({"prompt": prompt, "completion": (KIND + CURT)[index % 8]} for index, prompt in enumerate(prompts)),
    )
    write_jsonl(
        folder / "preferences.jsonl",
        ({"prompt": prompt, "chosen": KIND[index % 4], "rejected": CURT[index % 4]} for index, prompt in enumerate(prompts)),
    )
    rows = [{"id": f"p{index}", "prompt": text, "reference": topic} for index, (text, topic) in enumerate(MISHAPS * 2)]
    write_jsonl(folder / "prompts.jsonl", rows)
    write_jsonl(folder / "held_out.jsonl", ({**row, "id": f"h{row['id']}", "prompt": f"{row['prompt']}?"} for row in rows[:6]))
    (folder / "retention.txt").write_text("\n".join(KIND + CURT) + "\n", encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(engine=engine), encoding="utf-8")
    return recipe
