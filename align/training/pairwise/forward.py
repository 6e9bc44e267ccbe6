"""What a pairwise loss needs of a model: a log-probability per sequence, or a score per side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from align.models.dropout import set_dropout
from align.models.head import extend_forward, last_hidden_states, target_logps
from align.training.pairwise.collator import attention_of_pairs

LAYOUT_NAMES = (
    "input_ids",
    "position_ids",
    "pair_ids",
    "side_ids",
    "attention_mask",
    "hidden_index",
    "target_ids",
    "sequence_index",
    "token_counts",
    "last_index",
)


def prepare_model(model: Any) -> Any:
    """The model on the device of training, without dropout, giving what pairwise losses are made of.

    Dropout would make the policy differ from a reference that is itself.
    """
    set_dropout(model, 0.0)
    add_pair_outputs(model)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def add_pair_outputs(model: Any) -> None:
    """Let `model(layout=…)` return what `pair_outputs` says."""
    extend_forward(model, "layout", pair_outputs)


def layout_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a batch that the model sees: whole numbers only, which no mixed precision rounds."""
    return {name: batch[name] for name in LAYOUT_NAMES if name in batch}


def pair_outputs(model: Any, layout: Mapping[str, Tensor]) -> Tensor:
    """Summed log-probability of every sequence (language model) or score of every side (reward model).

    Args:
        model: a causal language model, or a sequence classifier with one label.
        layout: tensors of `PairCollator`.
    Returns:
        Language model: [sequences], float32, nats. Reward model: [2 * pairs], float32. Both carry the gradient.
    """
    score_head = getattr(model, "score", None)
    hidden = last_hidden_states(
        model,
        input_ids=layout["input_ids"],
        position_ids=layout["position_ids"],
        attention_mask=_attention_mask(model, layout),
    ).flatten(0, 1)
    if score_head is not None:
        scores: Tensor = score_head(hidden.index_select(0, layout["last_index"]))
        return scores[:, 0].float()
    logps = target_logps(model, hidden.index_select(0, layout["hidden_index"]), layout["target_ids"]).logps
    return logps.new_zeros(len(layout["token_counts"])).index_add(0, layout["sequence_index"], logps)


def _attention_mask(model: Any, layout: Mapping[str, Tensor]) -> Tensor:
    """The mask as the model's attention takes it; made where the tensors are, for it is much larger than what it is made from."""
    if "pair_ids" not in layout:
        return layout["attention_mask"]
    visible = attention_of_pairs(layout["pair_ids"], layout["side_ids"])
    if model.config._attn_implementation != "eager":
        return visible
    dtype = next(model.parameters()).dtype
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)
