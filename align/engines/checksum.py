"""Checksums of a model's weights that do not depend on how an engine lays them out.

An engine keeps the same numbers in another form: vLLM joins the projections of queries, keys and values, may transpose, pad
with zeros, or pack them for its kernels. So the checksum of a part of a model is a sum over its numbers of a mixture of their
bits, in which order and zeros do not count. It finds weights that are old, missing, rounded otherwise or damaged, and not two
tensors of one layer that have changed places; those show in `rollout/sampler_gap`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.models.facts import names_head, names_token_table
from align.models.stream import with_tied_head

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK = 1 << 22
"""Numbers at a time, whose bits are widened to 8 bytes."""
FACTORS = (-7046029254386353131, -4658895280553007687)
"""Odd numbers of 64 bits, those of SplitMix64."""
SHIFT = 29
WORD = 1 << 64


@dataclass(frozen=True)
class WeightChecksums:
    """Of the weights that an engine computes with."""

    parts: dict[str, int]
    """By part of the model: its layers by number, the token table, the head, and the rest."""
    dtype: str
    """What the weights were rounded to, such as bfloat16."""
    has_tied_head: bool
    """Whether a head that is the token table is a part of its own."""


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to. Engines rename modules, and keep the numbers of layers."""
    if number := re.search(r"(?:^|\.)(\d+)\.", name):
        return f"layer {number[1]}"
    if names_token_table(name):
        return "token table"
    return "head" if names_head(name) else "other weights"


def checksums_of(weights: Iterable[tuple[str, Tensor]], dtype: str) -> dict[str, int]:
    """The checksum of every part of a model. A part may come in pieces, in any order.

    Args:
        weights: by name.
        dtype: that all of them are rounded to before.
    """
    return of_parts([sums_by_name(weights, dtype)])


def sums_by_name(weights: Iterable[tuple[str, Tensor]], dtype: str) -> dict[str, int]:
    """The same of every tensor, by its name."""
    import torch

    sums: dict[str, int] = {}
    for name, tensor in weights:
        sums[name] = (sums.get(name, 0) + _mixed_sum(tensor.detach(), getattr(torch, dtype))) % WORD
    return sums


def of_parts(devices: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The checksum of every part of a model that several devices divide.

    Each has some rows or columns of most tensors, and the whole of others, such as norms; or the same heads of keys and values as
    some of the others. What several of them hold alike therefore counts once.

    Args:
        devices: of each, what `sums_by_name` found there.
    """
    parts: dict[str, int] = {}
    for name in dict.fromkeys(name for sums in devices for name in sums):
        part = part_of(name)
        parts[part] = (parts.get(part, 0) + sum({sums.get(name, 0) for sums in devices})) % WORD
    return parts


def differing_parts(weights: Iterable[tuple[str, Tensor]], found: WeightChecksums) -> list[str]:
    """Parts whose weights in an engine are not those given; empty where all are.

    Args:
        weights: as `TextEngine.update_weights` takes them.
        found: of the engine.
    """
    expected = checksums_of(with_tied_head(weights) if found.has_tied_head else weights, found.dtype)
    return [part for part in expected | found.parts if expected.get(part) != found.parts.get(part)]


def _mixed_sum(tensor: Tensor, dtype: torch.dtype) -> int:
    import torch

    total = 0
    for piece in tensor.reshape(-1).split(CHUNK):
        rounded = piece.to(dtype) + 0.0  # of the two zeros the one whose bits are 0
        bits = rounded.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rounded.element_size()]).to(torch.int64)
        bits = bits * FACTORS[0]
        total += int(((bits ^ (bits >> SHIFT)) * FACTORS[1]).sum())
    return total
