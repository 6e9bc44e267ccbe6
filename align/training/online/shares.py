"""How the processes of a training share the episodes of a rollout batch or mini-batch, and put what they computed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from align.runtime.group import all_of, group_size
from align.runtime.life import still_working
from align.training.online.layout import PackedEpisodes


@dataclass(frozen=True)
class Passes:
    """The forward passes of this process over its share of some episodes."""

    own: Sequence[PackedEpisodes]
    fillers: Sequence[PackedEpisodes]
    """Passes that count nothing: under FSDP2 every pass is one of all processes, also of those whose share has fewer."""
    tokens: int
    """Completion tokens of the episodes of all processes, by which losses are divided."""
    completions: int
    """The same in completions."""
    scale: int = 1
    """What losses are multiplied by, as FSDP2 averages gradients over processes."""

    def weighted(self) -> Iterator[tuple[PackedEpisodes, int]]:
        """Every pass, and what its loss is multiplied by: 0 for one that counts nothing."""
        for batches, scale in ((self.own, self.scale), (self.fillers, 0)):
            for batch in batches:
                still_working()
                yield batch, scale


def total_numbers(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums over the passes of all processes, by name. A process without passes has none."""
    totals: dict[str, float] = {}
    for part in all_of(dict(sums)):
        for name, value in part.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals


def fill_from_all(tensors: Sequence[Tensor]) -> None:
    """Fill in what other processes computed, in place.

    Args:
        tensors: of one shape, 0 at the places that another process computed.
    """
    if group_size() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
