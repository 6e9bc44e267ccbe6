"""Model FLOPs utilisation (MFU): what a step must compute, over what the device could compute in the step's time.

Chowdhery et al. 2022 (PaLM), appendix B: the operations of the model itself, forward and backward, on real tokens. Padding does
not count, nor what is computed a second time. Six operations per weight of a linear layer and token (Kaplan et al. 2020, table
1); for attention twelve per layer, unit of width, and token that a token sees; the head on predicted completion tokens alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any


def measured_matmul_flops(rows: int = 1024, inner: int = 1024, columns: int = 1024, *, repeats: int = 5) -> float:
    """Operations per second of a float32 product [rows, inner] · [inner, columns] on this CPU, the best of several."""
    import torch

    left, right = torch.rand(rows, inner), torch.rand(inner, columns)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return float(2 * rows * inner * columns / best)


def training_flops(
    shape: Mapping[str, Any], rows: Iterable[tuple[int, list[int]]], *, has_head: bool = True, shared_prompt: bool = False
) -> float:
    """Operations of a training step, forward and backward.

    Args:
        shape: keys of a transformers configuration of Llama's kind.
        rows: tokens of the prompt, and of every completion of it.
        has_head: whether completions go through the language model's head; a score head costs nothing.
        shared_prompt: whether a prompt is computed once for all of its completions, or once for each.
    """
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    size = shape.get("head_dim") or width // shape["num_attention_heads"]
    queries, keys = size * shape["num_attention_heads"], size * shape["num_key_value_heads"]
    body = layers * (2 * width * (queries + keys) + 3 * width * shape["intermediate_size"])
    head = width * shape["vocab_size"] if has_head else 0
    total = 0.0
    for prompt, completions in rows:
        predicted = sum(completions)
        tokens = predicted + prompt * (1 if shared_prompt else len(completions))
        seen = sum(length * prompt + length**2 / 2 for length in completions)
        seen += prompt**2 / 2 * (1 if shared_prompt else len(completions))
        total += 6 * (body * tokens + head * predicted) + 12 * layers * queries * seen
    return total
