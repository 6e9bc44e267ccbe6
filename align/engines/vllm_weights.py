"""What is read of a vLLM model's weights, in the process that computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from align.engines.checksum import sums_by_name

if TYPE_CHECKING:
    from torch import Tensor

ROWS_READ = 256
"""Inputs of a layer whose weights are read at a time."""


def has_head(model: Any) -> bool:
    """Whether a vLLM model has a head beside its token table."""
    return any(name.rpartition(".")[2] == "lm_head" for name, _ in model.named_modules())


def sums_in(model: Any, *, dtype: str) -> dict[str, int]:
    """The checksums of what a device has of a vLLM model, by name, of the numbers that its layers multiply by."""
    return sums_by_name(_weights(model), dtype)


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter in pieces. One that two modules share comes twice, as the tied head that an exchange is given."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_packed = name == "weight" and hasattr(module, "cpu_linear")
            for piece in _as_multiplied(module, parameter) if is_packed else [parameter]:
                yield from _by_projection(f"{prefix}.{name}", module, piece, outputs=1 if is_packed else 0)


def _by_projection(name: str, module: Any, piece: Tensor, *, outputs: int) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values, which vLLM joins, each for itself.

    Of several devices that divide a model, some may have the same heads of keys and values, but never of queries.

    Args:
        outputs: dimension of the layer's outputs.
    """
    if not hasattr(module, "num_kv_head_replicas"):
        yield name, piece
        return
    queries, others = module.num_heads, module.num_kv_heads
    sizes = (queries * module.head_size, others * module.head_size, others * module.v_head_size)
    for projection, part in zip("qkv", piece.split(sizes, outputs), strict=True):
        yield f"{name}.{projection}", part


def _as_multiplied(module: Any, weight: Tensor) -> Iterator[Tensor]:
    """The weight of a layer on a CPU, [some inputs, outputs] at a time.

    vLLM packs it there for its kernel and often leaves an empty parameter, for which its own checksums are all alike. The product
    with rows of the identity matrix is exactly the weight: everything else that is added up is 0.
    """
    import torch

    inputs = int(weight.shape[1] if weight.dim() == 2 else module.input_size_per_partition)
    for start in range(0, inputs, ROWS_READ):
        rows = torch.eye(inputs, dtype=weight.dtype)[start : start + ROWS_READ]
        packed = module.cpu_linear(rows, weight, None)
        yield packed
        # A token table that is the head as well is kept beside the packed copy. If the two differ, no sum must agree.
        if weight.numel() and not torch.equal(packed, kept := weight[:, start : start + ROWS_READ].T):
            yield kept
