"""What a training does to fit into memory, where its recipe says `auto`.

First fewer rows in a pass, which costs next to nothing; then, where one row is too much, computing layers again, which costs a
third of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from align.config.online import OnlineTraining
from align.models.shape import ModelShape
from align.pipeline.estimate.loaded_model import Peft
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import Estimate, estimate_stage
from align.pipeline.estimate.spread import rows_of_a_step
from align.runtime.context import MemoryChoice
from align.runtime.spread import ALONE, Spread
from align.training.needs import RowLength

AUTO = "auto"


def fit_stage(
    config: Any,
    peft: Peft,
    shapes: Mapping[str, ModelShape],
    lengths: Sequence[RowLength] | None,
    machine: Machine,
    spread: Spread = ALONE,
) -> Estimate:
    """The estimate of a stage with the largest passes that fit, or with the smallest where none does.

    Args:
        config: of a stage that trains; see `Trains`.
        peft, shapes, lengths, machine, spread: see `estimate_stage`.
    """

    def estimate(choice: MemoryChoice) -> Estimate:
        needs = _adapted(config, choice, spread).training_needs()
        return replace(estimate_stage(needs, peft, shapes, lengths, machine, spread), choice=choice)

    # What is free on a computer changes from minute to minute. The size of a pass changes the rounding of sums, and the same
    # computer must give the same bytes; gradient checkpointing changes none there.
    room, free = machine.room_for(spread) if machine.device == "cpu" else machine.free_bytes, machine.free_for(spread)
    for choice in _choices(config, _share(config, spread)):
        found = estimate(choice)
        if found.memory.peak <= room:
            break
    if found.memory.peak > free and config.gradient_checkpointing == AUTO:
        found = estimate(replace(found.choice, gradient_checkpointing=True))
    return found


def _share(config: Any, spread: Spread) -> int:
    """Rows of an optimizer batch that a process has at most."""
    return math.ceil(rows_of_a_step(config) / spread.processes)


def _choices(config: Any, share: int) -> Iterator[MemoryChoice]:
    """What may be chosen, the fastest first. The size of a pass divides the batch of all processes."""
    sizes: list[int | None] = [None]
    if getattr(config, "micro_batch_size", None) == AUTO:
        sizes += [size for size in range(share - 1, 0, -1) if config.batch_size % size == 0]
    for recompute in (False, True) if config.gradient_checkpointing == AUTO else (False,):
        yield from (MemoryChoice(size, recompute) for size in sizes)


def _adapted(config: Any, choice: MemoryChoice, spread: Spread) -> Any:
    """The configuration of what one process does, which says itself what was chosen."""
    update: dict[str, Any] = {"gradient_checkpointing": True} if choice.gradient_checkpointing else {}
    if choice.micro_batch_size is not None:
        update["micro_batch_size"] = choice.micro_batch_size
    if spread.processes > 1 and isinstance(config, OnlineTraining):
        update["mini_batch_size"] = _share(config, spread)
    elif spread.processes > 1:
        share, micro = _share(config, spread), update.get("micro_batch_size", config.micro_batch_size)
        update |= {"batch_size": share, "micro_batch_size": micro if micro == AUTO else min(micro, share)}
    return config.model_copy(update=update)
