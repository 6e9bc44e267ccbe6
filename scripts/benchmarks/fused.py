"""Seconds of a training step (forward and backward) with and without `align.models.fused`, on a CPU in float32.

    python scripts/benchmarks/fused.py

The two take turns in one process, on random Llamas; writes scripts/benchmarks/fused.json.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from align.models.fused import ROTARY, fuse
from align.store.atomic import write_json

RESULT = Path(__file__).with_suffix(".json")
SHAPES = {
    "2 M (the quickstart's)": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3},
    "25 M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
ROWS, ROW_TOKENS, THREADS, REPEATS = 20, 192, 2, 12


def step(model: Any, ids: torch.Tensor, rotation: Any) -> float:
    setattr(modeling_llama, ROTARY, rotation)
    started = time.perf_counter()
    model(ids).last_hidden_state.sum().backward()
    return time.perf_counter() - started


def measure(shape: dict[str, int]) -> dict[str, Any]:
    config = LlamaConfig(**shape, vocab_size=2048, num_key_value_heads=shape["num_attention_heads"], attn_implementation="sdpa")
    torch.manual_seed(0)
    plain = LlamaForCausalLM(config).eval().model
    fused, rotation = copy.deepcopy(plain), getattr(modeling_llama, ROTARY)
    fuse(fused)
    sides = {"plain": (plain, rotation), "fused": (fused, getattr(modeling_llama, ROTARY))}
    ids = torch.randint(3, 2048, (ROWS, ROW_TOKENS))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(REPEATS + 2):
        for name, (model, function) in sides.items():
            passed = step(model, ids, function)
            if repeat >= 2:  # the first ones fill caches
                seconds[name].append(passed)
    setattr(modeling_llama, ROTARY, rotation)
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    return {"seconds": medians, "ratio": round(medians["plain"] / medians["fused"], 2)}


def main() -> None:
    torch.set_num_threads(THREADS)
    result = {
        "command": "python scripts/benchmarks/fused.py",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)},
        "tokens": ROWS * ROW_TOKENS,
        "models": {name: measure(shape) for name, shape in SHAPES.items()},
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
