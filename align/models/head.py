"""Log-probabilities of chosen tokens from a causal model's hidden states.

Logits are computed only for positions with a label, some hundreds or thousands of tokens at a time, so no [batch, sequence,
vocabulary] tensor exists. The backward pass computes the logits of all chunks but the last again.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.losses.logps import IGNORED_LABEL
from align.models.attention import packed_inputs, padded_mask
from align.models.logits import logits_of
from align.models.segment import without_padding
from align.models.sizes import LOGITS_AT_ONCE, logits_chunk_tokens
from align.models.virtual_tokens import states_behind, virtual_tokens_of


def target_logps(model: Any, states: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """[tokens] log-probability of every target given the hidden state that predicts it, float32, nats. Carries the gradient.

    Args:
        model: a causal language model, for its head and the soft cap of its logits (Gemma 2).
        states: [tokens, width], hidden states.
        targets: [tokens], token ids.
        temperature: logits are divided by it, as the sampler did.
    """
    *chunks, last = _chunks(model, states, targets)
    pieces = [checkpoint(_chunk_logps, *chunk, model, temperature, use_reentrant=False) for chunk in chunks]
    # The last chunk is kept: its backward pass comes first, so that computing it again would cost time and lower no peak.
    return torch.cat([*pieces, _chunk_logps(*last, model, temperature)])


def _chunks(model: Any, states: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    weight = model.get_output_embeddings().weight
    vocabulary = getattr(weight, "ds_shape", weight.shape)[0]  # DeepSpeed leaves it empty between passes
    tokens = logits_chunk_tokens(vocabulary, states.device.type)
    return list(zip(states.split(tokens), targets.split(tokens), strict=True))


def _chunk_logps(states: Tensor, targets: Tensor, model: Any, temperature: float) -> Tensor:
    logits = logits_of(model, states)
    return _TargetLogps.apply(logits if temperature == 1 else logits / temperature, targets)  # type: ignore[no-any-return]


class _TargetLogps(torch.autograd.Function):
    """Log-softmax at the targets, in the memory of the logits, which are lost.

    torch's cross-entropy holds three such tensors in its backward pass. The arithmetic is the same, to the bit, as each row goes
    through the same kernels.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        for part in logits.split(_rows_at_once(logits)):
            part.copy_(part.log_softmax(-1))
        ctx.save_for_backward(logits, targets)
        return logits.gather(-1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logps, targets = ctx.saved_tensors
        rows = _rows_at_once(logps)
        parts = (tensor.split(rows) for tensor in (logps, targets[:, None], gradients[0][:, None]))
        for part, chosen, gradient in zip(*parts, strict=True):
            outer = torch.zeros_like(part).scatter_(-1, chosen, gradient)
            part.copy_(torch._log_softmax_backward_data(outer, part, -1, part.dtype))
        return logps, None


def _rows_at_once(logits: Tensor) -> int:
    """So few that copies of them are small, and on a CPU in its cache."""
    return max(1, LOGITS_AT_ONCE.get(logits.device.type, LOGITS_AT_ONCE["cuda"]) // logits.shape[-1])


class LogpsAndEntropy(NamedTuple):
    """[tokens] each, float32, nats, without gradient."""

    logps: Tensor
    """Log-probability of every target."""
    entropy: Tensor
    """Entropy of the distribution that each target was drawn from."""


@torch.no_grad()
def target_logps_and_entropy(model: Any, states: Tensor, targets: Tensor, *, temperature: float = 1.0) -> LogpsAndEntropy:
    """What `target_logps` returns, and the entropies. The arguments are those of `target_logps`."""
    pieces = []
    for chunk, chosen in _chunks(model, states, targets):
        logps = (logits_of(model, chunk) / temperature).log_softmax(-1)
        pieces.append((logps.gather(-1, chosen[:, None])[:, 0], -(logps.exp() * logps).sum(-1)))
    return LogpsAndEntropy(*(torch.cat(part) for part in zip(*pieces, strict=True)))


def last_hidden_states(
    model: Any,
    *,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """[batch, seq, width] hidden states that the head reads, behind the model's virtual tokens where it has some.

    Args:
        input_ids: [batch, seq].
        attention_mask: [batch, seq], 0 on padding, which is on the right; or a mask for the layers, of four dimensions, see
            `align.models.attention`. None where no real token could see padding.
        position_ids: [batch, seq]; without a mask they restart with every sequence of a row. With virtual tokens a row is one
            sequence, and positions follow from the mask.
    Returns:
        Of padding: zeros, or states without a meaning.
    """
    if (encoder := virtual_tokens_of(model)) is not None:
        return states_behind(model, encoder, input_ids, attention_mask)
    if attention_mask is None and position_ids is not None:
        attention_mask, position_ids = packed_inputs(model, position_ids)
    elif attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = padded_mask(model, attention_mask)
    real = without_padding(attention_mask)
    if real is None:
        return _states(model, input_ids, attention_mask, position_ids)
    # One row of real tokens: attention goes by segments, and for all else it makes no difference which row a token is in.
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    places = real.places.to(input_ids.device)
    row = [tensor.flatten().index_select(0, places)[None] for tensor in (input_ids, position_ids)]
    states = _states(model, row[0], real.mask, row[1])[0]
    return states.new_zeros(input_ids.numel(), states.shape[-1]).index_copy(0, places, states).view(*input_ids.shape, -1)


def _states(model: Any, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
    hidden: Tensor = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    return hidden


def token_logps(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """[batch, seq] log-probability of every label in nats, float32; zero where the label is -100.

    Args:
        model: see `target_logps`.
        hidden: [batch, seq, width], the states that predict `labels` (already shifted).
        labels: [batch, seq], token ids; -100 is ignored.
    """
    # Prompts and padding never reach the head, the largest matrix of a small model.
    counted = labels != IGNORED_LABEL
    logps = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    return logps.masked_scatter(counted, target_logps(model, hidden[counted], labels[counted]))


def extend_forward(model: Any, keyword: str, compute: Callable[..., Tensor]) -> None:
    """Let `model(keyword=value, **inputs)` return `compute(model, value, **inputs)`; every other call stays as it was."""
    # A separate function would not do: accelerate puts autocast around `forward`, and DDP and FSDP start a step in the `forward`
    # of their wrapper. What bypasses it trains in other arithmetic, or its gradients are not averaged. A module around the model
    # would not do either: it would rename every parameter in checkpoints.
    original = model.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return compute(self, kwargs.pop(keyword), **kwargs) if keyword in kwargs else original(*args, **kwargs)

    model.forward = types.MethodType(forward, model)
