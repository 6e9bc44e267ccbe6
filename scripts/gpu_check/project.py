"""A recipe with every stage on a model of true shape, trained in both arithmetics: what the parts of the check look at.

Trainings go through the launcher of several processes, with one: `RANK` and `DIVIDED` are the machine files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.store.artifact import METRICS_NAME, Entry, Manifest
from align.testing.project import INPUTS, write_jsonl
from align.testing.shapes import shaped_causal_lm

ARITHMETICS = ("float32", "bfloat16")
RANK = {"training": {"processes": 1, "strategy": "ddp"}}
DIVIDED = {"training": {"processes": 1, "strategy": "fsdp2"}}
ALONE = {"training": {"processes": 1, "strategy": "single"}}
"""In the stage's own process, without ranks."""
TRAINED = ("sft", "reward", "dpo", "orpo")
"""On rows that are there before."""
SCORED = ("ppo", "grpo")
"""On scores of their own completions; distill learns from a teacher on them."""
RECIPE = (
    f"name: gpu-check\nseed: 3\n{INPUTS}"
    """\
stages:
{trainings}
  sampled: {{stage: generate, model: base, prompts: prompts, num_candidates: 4, {sampling}}}
  scored:  {{stage: score, candidates: sampled, scorers: {{rm: reward_float32}}}}
  best:    {{stage: best_of_n, scored: scored, scorer: rm, keep_truncated: true}}
  pairs:   {{stage: pairs, scored: scored, scorer: rm, keep_truncated: true}}
  compare: {{stage: compare, models: [sft_float32, sft_bfloat16], baseline: sft_float32, prompts: held_out,
            retention: retention, bootstrap_resamples: 100, scorers: {{rm: reward_float32}}, {sampling}}}
"""
)
TRAINING = """\
  sft_{0}:    {{stage: sft, model: base, data: instructions, packing: false, keep_epochs: none, checkpoint_steps: 2,
               num_epochs: 6, precision: {0}, {1}}}
  reward_{0}: {{stage: reward_model, model: base, data: comparisons, held_out_share: 0.3, num_epochs: 2, precision: {0}, {1}}}
  dpo_{0}:    {{stage: dpo, model: base, pairs: comparisons, num_epochs: 2, precision: {0}, {1}}}
  orpo_{0}:   {{stage: orpo, model: base, pairs: comparisons, num_epochs: 2, precision: {0}, {1}}}
  ppo_{0}:    {{stage: ppo, model: base, prompts: prompts, scorers: {{rm: reward_float32}}, precision: {0}, {2}}}
  grpo_{0}:   {{stage: grpo, model: base, prompts: prompts, scorers: {{rm: reward_float32}}, group_size: 2, precision: {0}, {2}}}
  distill_{0}: {{stage: distill, model: base, teacher: sft_float32, prompts: prompts, precision: {0}, {2}}}
"""


@dataclass(frozen=True)
class Size:
    """Rows and lengths of the check."""

    batch: int
    micro: int
    prompt: int
    """Letters at most; half at least. The tokenizer makes a token of each."""
    completion: int


SIZES = {"cuda": Size(16, 4, 300, 300), "cpu": Size(4, 2, 24, 24)}


@dataclass(frozen=True)
class Project:
    """The folder of one shape's recipe, and of its run."""

    folder: Path
    shape: str
    device: str
    engine: str

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def manifest(self, stage: str, runs: Path | None = None) -> Manifest | None:
        """Of a finished stage."""
        return Entry((runs or self.runs) / "gpu-check" / "stages" / stage).read_manifest()

    def curve(self, stage: str, runs: Path | None = None) -> list[dict[str, float]]:
        path = (runs or self.runs) / "gpu-check" / "stages" / stage / METRICS_NAME
        return [json.loads(line) for line in path.read_text().splitlines()]

    def write(self) -> None:
        """Model, rows and recipe."""
        size = SIZES[self.device]
        self.folder.mkdir(parents=True, exist_ok=True)
        shaped_causal_lm(self.folder / "base", self.shape, dtype="bfloat16" if self.device == "cuda" else "float32")
        draw = random.Random(7)

        def text(most: int) -> str:
            return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=draw.randint(most // 2, most))).strip() or "a"

        def rows(count: int, *names: str) -> list[Mapping[str, Any]]:
            return [{"prompt": text(size.prompt), **{name: text(size.completion) for name in names}} for _ in range(count)]

        write_jsonl(self.folder / "instructions.jsonl", rows(size.batch, "completion"))
        write_jsonl(self.folder / "preferences.jsonl", rows(3 * size.batch, "chosen", "rejected"))
        for name, mark in (("prompts", "p"), ("held_out", "h")):
            found = rows(size.batch, "reference")
            write_jsonl(self.folder / f"{name}.jsonl", ({**row, "id": f"{mark}{number}"} for number, row in enumerate(found)))
        (self.folder / "retention.txt").write_text("\n".join(text(size.completion) for _ in range(8)) + "\n")
        self.recipe.write_text(self._recipe(size))

    def _recipe(self, size: Size) -> str:
        limits = f"max_completion_tokens: {size.completion}, max_prompt_tokens: {2 * size.prompt + 64}"
        training = (
            f"learning_rate: 1e-5, lr_scheduler: constant, warmup_ratio: 0, max_tokens: 1024, "
            f"batch_size: {size.batch}, micro_batch_size: {size.micro}"
        )
        online = (
            f"learning_rate: 1e-5, num_episodes: {3 * size.batch}, rollout_batch_size: {size.batch}, "
            f"mini_batch_size: {size.batch // 2}, ppo_epochs: 1, engine: {self.engine}, {limits}"
        )
        sampling = f"engine: {self.engine}, {limits}"
        trainings = "".join(TRAINING.format(name, training, online) for name in ARITHMETICS)
        return RECIPE.format(trainings=trainings.rstrip("\n"), sampling=sampling)
