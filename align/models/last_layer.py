"""Leave out what no loss reads: the feed-forward part of the last layer, where nothing is made of its result.

Attention needs the prompt's keys and values in every layer, but the last feed-forward part works on each position alone, and a
loss on completions, or a score at the end, reads few of them. What is saved is a share of one layer: much in a small model.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def only_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Within it, forward passes are right at `positions` alone, and cheaper.

    A model whose last feed-forward part is not found, or is more than a function of one position's state, computes everything.

    Args:
        model: a model of transformers with a head.
        positions: [n] places in the flattened batch whose last hidden states are read.
    """
    part = _last_feed_forward(model)
    if part is None:
        yield
        return
    # Each once: a state that two completions begin from would get its gradient twice.
    once = torch.unique(positions)
    shape: list[torch.Size] = []

    def choose(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (states,) = inputs
        shape.append(states.shape)
        return (states.flatten(0, -2).index_select(0, once),)

    def put_back(_: Any, __: Any, output: Tensor) -> Tensor:
        full = shape.pop()
        return output.new_zeros(full).flatten(0, -2).index_copy(0, once, output).view(full)

    hooks = [part.register_forward_pre_hook(choose), part.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_feed_forward(model: Any) -> Any:
    """The last layer's, of the plain kind (Llama, Qwen, Gemma, GPT-2): one tensor in, one out. Experts route tokens together."""
    layers = getattr(model.base_model, "layers", None) or getattr(model.base_model, "h", None)
    part = getattr(layers[-1], "mlp", None) if layers is not None else None
    if part is None or not type(part).__name__.endswith("MLP") or len(inspect.signature(part.forward).parameters) != 1:
        return None
    return part
