"""Which tokens of the pairs in a row see each other, as attention takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from align.models.attention import as_additive, prefers_mask
from align.models.segment import PADDING, Segment, mask_of
from align.training.pairwise.collator import CHOSEN, NO_PAIR, PROMPT


def pair_mask(model: Any, layout: Mapping[str, Tensor]) -> Tensor:
    """For a batch of `PairCollator`; built on the device, since a mask is much larger than the ids that it is built from."""
    if "pair_ids" not in layout:
        return layout["attention_mask"]
    places = layout["pair_ids"], layout["side_ids"]
    if prefers_mask(model, places[0], one_for_all=True):
        return as_additive(model, attention_of_pairs(*places))
    return mask_of(segments_of_pairs(*places))


def attention_of_pairs(pair_ids: Tensor, side_ids: Tensor) -> Tensor:
    """[rows, 1, seq, seq], True where the token of the third dimension sees the one of the fourth.

    Padding sees padding only, so that no row of the mask is empty, which would give NaN.
    """
    seq = pair_ids.shape[1]
    same_pair = pair_ids[:, :, None] == pair_ids[:, None, :]
    own_side_or_prompt = (side_ids[:, None, :] == PROMPT) | (side_ids[:, :, None] == side_ids[:, None, :])
    causal = torch.ones(seq, seq, dtype=torch.bool, device=pair_ids.device).tril()
    return (same_pair & own_side_or_prompt & causal)[:, None]


def segments_of_pairs(pair_ids: Tensor, side_ids: Tensor) -> list[Segment]:
    """The same as `attention_of_pairs` in segments: prompt and chosen together, rejected as another end of the prompt."""
    kinds = torch.stack([torch.arange(len(pair_ids), device=pair_ids.device)[:, None].expand_as(pair_ids), pair_ids, side_ids])
    (_, pairs, sides), lengths = kinds.flatten(1).unique_consecutive(dim=1, return_counts=True)
    segments: list[Segment] = []
    prompt = prompt_length = 0
    for pair, side, length in zip(pairs.tolist(), sides.tolist(), lengths.tolist(), strict=True):
        if pair == NO_PAIR:
            segments.append(Segment(length, PADDING))
        elif side == PROMPT:
            prompt, prompt_length = len(segments), length
            segments.append(Segment(length))
        elif side == CHOSEN:
            segments[prompt] = Segment(prompt_length + length)
        else:
            segments.append(Segment(length, prompt, prompt_length))
    return segments
