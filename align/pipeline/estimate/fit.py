"""What a training does to fit into memory, where its recipe says `auto`.

First fewer rows in a pass, which costs next to nothing; then, where one row is too much, computing layers again, which costs a
third of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from align.models.shape import ModelShape
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import Estimate, Peft, estimate_stage
from align.runtime.context import MemoryChoice
from align.training.needs import RowLength

AUTO = "auto"


def fit_stage(
    config: Any, peft: Peft, shapes: Mapping[str, ModelShape], lengths: Sequence[RowLength] | None, machine: Machine
) -> Estimate:
    """The estimate of a stage with the largest passes that fit, or with the smallest where none does.

    Args:
        config: of a stage that trains; see `Trains`.
        peft, shapes, lengths, machine: see `estimate_stage`.
    """

    def estimate(choice: MemoryChoice) -> Estimate:
        needs = _adapted(config, choice).training_needs()
        return replace(estimate_stage(needs, peft, shapes, lengths, machine), choice=choice)

    # What is free on a computer changes from minute to minute. The size of a pass changes the rounding of sums, and the same
    # computer must give the same bytes; gradient checkpointing changes none there.
    room = machine.total_bytes if machine.device == "cpu" else machine.free_bytes
    for choice in _choices(config):
        found = estimate(choice)
        if found.memory.peak <= room:
            break
    if found.memory.peak > machine.free_bytes and config.gradient_checkpointing == AUTO:
        found = estimate(replace(found.choice, gradient_checkpointing=True))
    return found


def _choices(config: Any) -> Iterator[MemoryChoice]:
    """What may be chosen, the fastest first."""
    sizes: list[int | None] = [None]
    if getattr(config, "micro_batch_size", None) == AUTO:
        sizes += [size for size in range(config.batch_size - 1, 0, -1) if config.batch_size % size == 0]
    for recompute in (False, True) if config.gradient_checkpointing == AUTO else (False,):
        yield from (MemoryChoice(size, recompute) for size in sizes)


def _adapted(config: Any, choice: MemoryChoice) -> Any:
    """The configuration that says itself what was chosen."""
    update: dict[str, Any] = {"gradient_checkpointing": True} if choice.gradient_checkpointing else {}
    if choice.micro_batch_size is not None:
        update["micro_batch_size"] = choice.micro_batch_size
    return config.model_copy(update=update)
