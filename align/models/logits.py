"""Logits and scores from hidden states: a head's product in float32, and what a model computes before and behind it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from align.errors import RecipeError
from align.models.later_weights import has_weights

COPIED_NUMBERS = 1 << 24
"""Of a bfloat16 weight, that are float32 at once on a CPU."""


def in_float32(head: Any, states: Tensor) -> Tensor:
    """[…, outputs] of a head, computed in float32 (float64 for a float64 head) whatever autocast surrounds the call.

    Autocast would round logits and scores to 8 bits, 0.03 at a logit of 8: an error in every token of a ratio, a margin or a KL.

    Args:
        head: a linear layer; one in bfloat16 is frozen. PEFT may stand around it with rows that learn.
        states: […, width], of any type.
    """
    with torch.autocast(states.device.type, enabled=False):
        if (adapter := getattr(head, "token_adapter", None)) is not None:
            # PEFT's own way copies the head, and its backward pass makes a gradient as large as the head.
            whole = in_float32(adapter.get_base_layer(), states)
            (ids,), (rows,) = adapter.token_indices.values(), adapter.trainable_tokens_delta.values()
            learnt = linear(states.to(rows.dtype), rows).to(whole.dtype)
            return whole.index_copy(-1, torch.tensor(ids, device=whole.device), learnt)
        if head.weight.dtype == torch.bfloat16:
            # The views are outside: a view that a function of one's own returns cannot be written into, as log-softmax does.
            outputs: Tensor = _FrozenProduct.apply(states.flatten(0, -2), head.weight).unflatten(0, states.shape[:-1])
            return outputs if head.bias is None else outputs + head.bias
        # The class's method: the module's own may have been replaced by this function.
        exact: Tensor = type(head).forward(head, states.to(head.weight.dtype))
        return exact


def keep_in_float32(head: Any) -> None:
    """Let a head that the model itself calls compute as `in_float32` does."""
    head.forward = functools.partial(in_float32, head)


class _FrozenProduct(torch.autograd.Function):
    """[tokens, outputs] of states @ weight.T in float32, for a bfloat16 weight, which does not learn."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = states.dtype
        return _product(states, weight.T)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            return _product(gradient, weight).to(ctx.dtype), None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """[tokens, columns] of left @ right in float32, without a float32 copy of `right`, 2.3 GiB at 8 billion parameters.

    Args:
        left: [tokens, rows], float32 or bfloat16.
        right: [rows, columns], bfloat16.
    """
    multiply = _bfloat16_product if left.is_cuda else _product_by_columns
    product = multiply(left.bfloat16(), right)
    if left.dtype != torch.bfloat16:
        # Two bfloat16 numbers hold 16 bits of a float32 number, so each state is off by at most 2^-17 of itself. Tensor cores
        # add such products up in float32, some ten times as fast as they are computed in float32.
        product += multiply((left - left.bfloat16()).bfloat16(), right)
    return product


def _bfloat16_product(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right, out_dtype=torch.float32)


def _product_by_columns(left: Tensor, right: Tensor) -> Tensor:
    """What `_bfloat16_product` computes; torch has that for GPUs only."""
    product = left.new_empty(len(left), right.shape[1], dtype=torch.float32)
    columns = max(1, COPIED_NUMBERS // len(right))
    for into, part in zip(product.split(columns, dim=1), right.split(columns, dim=1), strict=True):
        torch.mm(left.float(), part.float(), out=into)
    return product


def logits_of(model: Any, states: Tensor) -> Tensor:
    """[tokens, vocabulary] in float32: the model's own forward, with `states` in place of what its layers return.

    Args:
        model: a causal language model.
        states: [tokens, width], hidden states.
    """
    # Models scale and cap what goes into their head and what comes out of it, and names do not tell how: logits_scaling divides
    # logits in Granite, multiplies them in HyperCLOVA X, and divides states in MiniCPM3.
    head = model.get_output_embeddings()
    with contextlib.ExitStack() as replaced:
        for layers in {model.base_model, model.get_decoder()} - {head}:  # some call the decoder inside their base model
            replaced.enter_context(_forward_replaced(layers, lambda *args, **kwargs: _LayersResult(states[None])))
        replaced.enter_context(_forward_replaced(head, functools.partial(in_float32, head)))
        logits: Tensor = type(model).forward(model, return_dict=True).logits.flatten(0, 1)
    return logits


@torch.no_grad()
def check_logits(model: Any, where: str) -> None:
    """Compare the logits of two tokens with those of the whole model, before anything is learnt or measured by them.

    A model without weights is left to the process that has them.

    Raises:
        RecipeError: if they differ, or this way of computing them does not fit the model.
    """
    if not has_weights(model):
        return
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    whole = model(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
    problem = ""
    try:
        found = logits_of(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1))
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        problem = f"cannot be computed from its hidden states: {str(error).partition(chr(10))[0]}"
    else:
        # bfloat16 weights round the whole model's logits to 8 bits. A broken model is found by what it is used for.
        off = (found - whole).abs().max() if found.shape == whole.shape else torch.tensor(math.inf)
        if off > 2**-6 * whole.abs().max():
            problem = f"differ by {off:.3g} from those computed from its hidden states"
    if problem:
        raise RecipeError(
            f"{where}: the logits of {type(model).__name__} {problem}",
            hint="align cannot train or measure models of this kind; please report it with the model's config.json.",
        )


class _LayersResult:
    """What a model's layers return: hidden states, and nothing else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


@contextlib.contextmanager
def _forward_replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    kept = module.__dict__.get("forward")  # accelerate puts its own there
    module.forward = forward
    try:
        yield
    finally:
        if kept is None:
            del module.forward
        else:
            module.forward = kept
