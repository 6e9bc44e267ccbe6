"""Segments: which tokens of a row see each other, as a list in place of a mask of pairs. `attention.py` computes with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -1
"""In place of a prefix: the tokens of the segment are padding, which `without_padding` leaves out."""


class Segment(NamedTuple):
    """Tokens that stand together, each of which sees itself and those before it. Segments follow each other without gaps."""

    length: int
    prefix: int = 0
    """Number of an earlier segment; this one continues the first `prefix_length` tokens of it."""
    prefix_length: int = 0


def mask_of(segments: Iterable[Segment]) -> Tensor:
    """[1, 1, segments, 3], whole numbers, on the CPU: transformers hands a tensor of four dimensions to the layers as it is."""
    return torch.tensor(list(segments))[None, None]


class RealTokens(NamedTuple):
    """The tokens of rows without the padding."""

    places: Tensor
    """[tokens], in the rows laid end to end; on the CPU."""
    mask: Tensor
    """Their segments, as from `mask_of`."""


def without_padding(attention_mask: Tensor | None) -> RealTokens | None:
    """What is left of rows without their padding; None where there is none, or it must stay, as a mask of pairs has it."""
    if attention_mask is None or attention_mask.ndim != 4 or attention_mask.dtype != torch.int64:
        return None
    segments = attention_mask[0, 0]
    is_real = segments[:, 1] != PADDING
    if is_real.all():
        return None
    kept = segments[is_real]
    kept[:, 1] = (is_real.cumsum(0) - 1)[kept[:, 1]]  # the number of a prefix among those that are left
    return RealTokens(is_real.repeat_interleave(segments[:, 0]).nonzero()[:, 0], kept[None, None])
