"""Scoring and likelihoods of several completions of a prompt: the prompt computed once, against once for each completion.

    python scripts/benchmarks/shared_prompt.py

Random models in float32, 8 completions of each prompt, prompts three times as long as completions, on a CPU. The two ways take
turns, in one process, on the same rows: the second gets prompts that differ in their first token, so that none is shared. Medians
of REPEATS turns. Writes shared_prompt.json.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from align.runtime.threads import thread_environment

os.environ.update(thread_environment(os.environ))  # before torch is imported

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from align.models.folder import ModelFolder
from align.scoring.likelihood import LikelihoodModel
from align.scoring.reward_model import RewardModelScorer
from align.scoring.shared_prompt import Row
from align.store.atomic import write_json
from align.testing.tiny import tiny_tokenizer

RESULT = Path(__file__).with_suffix(".json")
REPEATS = 3
COMPLETIONS = 8
BATCH_TOKENS = 8192
SHAPES: dict[str, dict[str, int]] = {
    "toy, 2 M": {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_hidden_layers": 4},
    "SmolLM2-135M, 6 of 30 layers": {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 6,
    },
}  # fmt: skip
LENGTHS = [(60, 20, 16), (384, 128, 2)]
"""Tokens of a prompt and of a completion, and how many prompts."""


def save(folder: Path, model_class: Any, shape: str) -> ModelFolder:
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=max(400, len(tokenizer)), max_position_embeddings=2048, num_labels=1, pad_token_id=0, **SHAPES[shape]
    )
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelFolder(folder)


def rows_of(prompt: int, completion: int, prompts: int, *, shared: bool) -> list[Row]:
    """Of equal length either way. Where nothing is shared, each completion's prompt begins with another token."""
    generator = torch.Generator().manual_seed(1)
    rows: list[Row] = []
    for number in range(prompts):
        ids = torch.randint(50, 390, (prompt,), generator=generator).tolist()
        for place in range(COMPLETIONS):
            first = 3 + (0 if shared else place)
            tail = torch.randint(50, 390, (completion,), generator=generator).tolist()
            rows.append(([first, number + 50, *ids[2:]], tail))
    return rows


def compare(compute: Callable[[list[Row]], list[float]], lengths: tuple[int, int, int]) -> dict[str, float]:
    ways = {name: rows_of(*lengths, shared=shared) for name, shared in (("shared", True), ("each", False))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + REPEATS):
        for name, rows in ways.items():
            started = time.perf_counter()
            compute(rows)
            seconds[name].append(time.perf_counter() - started)
    shared, each = (median(seconds[name][1:]) for name in ("shared", "each"))
    return {"shared, s": shared, "each, s": each, "each / shared": each / shared}


def main() -> None:
    measured: dict[str, Any] = {}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            scorer = RewardModelScorer(
                save(Path(folder) / "rm", LlamaForSequenceClassification, shape), batch_tokens=BATCH_TOKENS
            )
            reader = LikelihoodModel(save(Path(folder) / "lm", LlamaForCausalLM, shape), batch_tokens=BATCH_TOKENS)
            for lengths in LENGTHS:
                case = f"{shape}; {lengths[0]} + {lengths[1]} tokens"
                measured[case] = {
                    "scores": compare(scorer.score_rows, lengths),
                    "likelihoods": compare(reader.completion_logps, lengths),
                }
                print(case, json.dumps(measured[case]), flush=True)
    machine = {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(RESULT, {"machine": machine, "measured": measured})


if __name__ == "__main__":
    main()
