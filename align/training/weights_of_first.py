"""Weights that rank 0 alone reads, and sends to the processes that divide the model.

The computer's memory then holds the model once, however many processes of it train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from align.models.later_weights import weights_come_later
from align.runtime.group import from_first
from align.runtime.spread import Spread


@contextmanager
def weights_of_first(spread: Spread, *, all_read: bool = False) -> Iterator[None]:
    """Within it, models are loaded with weights in rank 0 only, where they divide it; `shard` sends them to the others.

    Args:
        all_read: for a model that every process must compute with before it is divided.
    """
    with weights_come_later(spread.divides_model and not all_read and dist.get_rank() != 0):
        yield


@dataclass(frozen=True)
class _Layout:
    """One parameter as rank 0 has it."""

    names: Sequence[str]
    """More than one where it is tied."""
    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool


def take_weights(model: nn.Module) -> dict[str, Tensor]:
    """Leave a model without memory for its parameters, laid out as in rank 0. All processes call it.

    Returns:
        Rank 0: what the parameters were, by their first name. Others: nothing.
    """
    is_first = dist.get_rank() == 0
    named = names_of_parameters(model)
    layouts = [_Layout(names, each.shape, each.dtype, each.requires_grad) for each, names in named.items()]
    weights = {names[0]: each.detach() for each, names in named.items()} if is_first else {}
    # Whether weights are tied also depends on the files, which the others have not read.
    for layout in from_first(layouts if is_first else None) or ():
        empty = nn.Parameter(torch.empty(layout.shape, dtype=layout.dtype, device="meta"), requires_grad=layout.requires_grad)
        set_parameter(model, layout.names, empty)
    return weights


def give_parts(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give every process its part of the weights that `take_weights` took, which are dropped one by one.

    Args:
        model: divided by FSDP2 since.
    """
    for empty, names in names_of_parameters(model).items():
        set_parameter(model, names, _part(empty, weights.pop(names[0], None)))


def _part(empty: Any, weight: Tensor | None) -> nn.Parameter:
    """This process's part of a parameter on the meta device; `weight` is the whole one, in rank 0."""
    from torch.distributed.tensor import DTensor

    mesh = empty.device_mesh
    rows = -(-empty.shape[0] // mesh.size())  # FSDP2 divides by rows; the last parts have fewer, or none
    part = torch.empty((rows, *empty.shape[1:]), dtype=empty.dtype, device=mesh.device_type)
    parts = None
    if weight is not None:
        parts = [_padded(weight[rank * rows : (rank + 1) * rows].to(part.device), rows) for rank in range(mesh.size())]
    dist.scatter(part, parts, src=0)
    own = part[: empty.to_local().shape[0]]
    divided = DTensor.from_local(own, mesh, empty.placements, run_check=False, shape=empty.shape, stride=empty.stride())
    return nn.Parameter(divided, requires_grad=empty.requires_grad)


def _padded(part: Tensor, rows: int) -> Tensor:
    return part.contiguous() if len(part) == rows else torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])])


def send_buffers(model: nn.Module, device: torch.device) -> None:
    """Give every process the buffers of rank 0, such as the frequencies of rotary positions, which no file holds."""
    is_first = dist.get_rank() == 0
    own = dict(model.named_buffers(remove_duplicate=False))
    facts: Mapping[str, Any] = from_first({name: (each.shape, each.dtype) for name, each in own.items()} if is_first else {})
    for name, (shape, dtype) in facts.items():
        buffer = own[name].to(device).contiguous() if is_first else torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(buffer, src=0)
        module, _, leaf = name.rpartition(".")
        model.get_submodule(module)._buffers[leaf] = buffer


def names_of_parameters(model: nn.Module) -> dict[Tensor, list[str]]:
    """The names of each parameter: more than one where it is tied."""
    named: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(parameter, []).append(name)
    return named


def set_parameter(model: nn.Module, names: Sequence[str], parameter: nn.Parameter) -> None:
    """Put a parameter where the names say."""
    for name in names:
        module, _, leaf = name.rpartition(".")
        model.get_submodule(module)._parameters[leaf] = parameter
