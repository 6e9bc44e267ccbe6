"""Log-probabilities of the tokens that a loss is taken on."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED_LABEL = -100
"""Label of a token that no loss is taken on. transformers and torch's cross-entropy use the same number."""


def sequence_logps(logits: Tensor, labels: Tensor, *, average: bool = False) -> Tensor:
    """Log-probability of every row's labelled tokens, given what comes before each.

    Position t of the logits predicts label t + 1; the shift is made here. Softmax and sum are in float32 (float64 for float64
    logits), whatever the logits are in. Differentiable in `logits`.

    Args:
        logits: [batch, seq, vocabulary], not shifted.
        labels: [batch, seq], token ids; -100 where a token is not counted. The first label has no logits and is never counted.
        average: divide by the number of counted tokens.
    Returns:
        [batch], nats; 0 for a row without a counted token.
    Raises:
        ValueError: if the shapes do not fit.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels must be [batch, seq] of the logits; got logits {list(logits.shape)}, labels {list(labels.shape)}"
        )
    targets = labels[:, 1:]
    mask = targets != IGNORED_LABEL
    # Only counted positions are taken: prompts and padding cost no float32 copy of the vocabulary, and values there, even an
    # infinity, reach neither the result nor the gradient.
    counted_logits = logits[:, :-1][mask]
    counted_logits = counted_logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen_logits = counted_logits.gather(-1, targets[mask].unsqueeze(-1)).squeeze(-1)
    counted_logps = chosen_logits - counted_logits.logsumexp(-1)
    sums = counted_logps.new_zeros(mask.shape).masked_scatter(mask, counted_logps).sum(-1)
    return sums / mask.sum(-1).clamp(min=1) if average else sums


def check_pairs(*tensors: Tensor) -> None:
    """Refuse inputs that would broadcast: a loss on pairs is one value per pair.

    Raises:
        ValueError: if the tensors are not [batch] of one size.
    """
    shapes = [list(tensor.shape) for tensor in tensors]
    if any(shape != shapes[0] or len(shape) != 1 for shape in shapes):
        raise ValueError(f"all inputs must be [batch] of one size, not {shapes}")
