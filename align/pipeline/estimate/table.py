"""The estimates of a plan in the terminal: a line for each training stage, or one for each of its methods."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import Estimate
from align.pipeline.estimate.plan import PlanEstimate, StageEstimate, fits
from align.runtime.context import PLAIN

HEADERS = ("stage", "method", "trained", "memory", "disk", "here")
UNKNOWN = "unknown"
CHOSEN = "←"
"""Behind the method of the recipe, where all are shown."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
COUNTS = ("", " k", " M", " B")
"""Thousands, millions, billions."""


def render_estimates(estimate: PlanEstimate, *, all_methods: bool = False) -> Iterator[RenderableType]:
    """A table; then a sentence for each stage that would fit with another method, and what the machine has.

    Args:
        all_methods: a line for every method instead of one for the recipe's; nothing is yielded without training stages.
    """
    if not estimate.stages:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in HEADERS:
        table.add_column(header, justify="right" if header in ("trained", "memory", "disk") else "left", overflow="fold")
    for stage in estimate.stages:
        for cells in _rows(stage, estimate.machine, all_methods=all_methods):
            table.add_row(*cells)
    yield table
    sentences = [sentence for stage in estimate.stages if (sentence := advice(stage, estimate.machine))]
    if any(stage.spread.processes > 1 for stage in estimate.stages):
        sentences.append("Memory is that of each process, where several share a training.")
    yield Text("\n".join([*sentences, _machine_text(estimate.machine)]))


def advice(stage: StageEstimate, machine: Machine) -> str | None:
    """A sentence where the recipe's method does not fit the memory and another does; None elsewhere."""
    chosen = stage.of_recipe
    if chosen is None or chosen.memory.peak <= machine.free_for(chosen.spread):
        return None
    fitting = [other for other in stage.estimates if other.memory.peak <= machine.free_for(other.spread)]
    if not fitting:
        return None
    # The largest that fits gives up least.
    best = max(fitting, key=lambda other: other.trainable_parameters)
    needs, free = size_text(chosen.memory.peak), size_text(machine.free_for(chosen.spread))
    return f"{stage.name}: {chosen.method} needs about {needs} of {free}; {best.method} needs {size_text(best.memory.peak)}"


def _rows(stage: StageEstimate, machine: Machine, *, all_methods: bool) -> Iterator[tuple[str, ...]]:
    shown = stage.estimates if all_methods else [estimate for estimate in stage.estimates if estimate.method == stage.chosen]
    if not shown:
        yield stage.name, stage.chosen, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN
    for number, estimate in enumerate(shown):
        is_chosen = estimate.method == stage.chosen
        method = f"{estimate.method} {CHOSEN}" if is_chosen and all_methods else estimate.method
        memory = size_text(estimate.memory.peak)
        if is_chosen and stage.measured_bytes is not None:
            memory += f" (was {size_text(stage.measured_bytes)})"
        trained, disk = count_text(estimate.trainable_parameters), size_text(estimate.disk_bytes)
        yield "" if number else stage.name, method, trained, memory, disk, _verdict(estimate, machine)


def _verdict(estimate: Estimate, machine: Machine) -> str:
    if fits(estimate, machine):
        return f"fits with {estimate.choice}" if estimate.choice != PLAIN else "fits"
    if estimate.memory.peak > (free := machine.free_for(estimate.spread)):
        return f"does not fit ({size_text(free)})"
    return f"does not fit ({size_text(machine.free_disk_bytes)} of disk)"


def _machine_text(machine: Machine) -> str:
    place = "memory" if machine.device == "cpu" else f"the memory of {machine.name}"
    free = f"{size_text(machine.free_bytes)} of {size_text(machine.total_bytes)} of {place}"
    text = f"Free here: {free}, {size_text(machine.free_disk_bytes)} of disk. Estimates; see `align docs memory`."
    return text if machine.device_line is None else f"{text}\nGPU: {machine.device_line}."


def size_text(size_bytes: int) -> str:
    """Such as 436 MiB or 2.3 GiB."""
    return _scaled(size_bytes, 1024, [f" {unit}" for unit in UNITS])


def count_text(count: int) -> str:
    """Such as 23 k or 7.6 M."""
    return _scaled(count, 1000, COUNTS)


def _scaled(value: float, step: int, units: tuple[str, ...] | list[str]) -> str:
    for unit in units[:-1]:
        # Rounded first, so that 1023.9 MiB is shown as 1.0 GiB and not as 1024 MiB.
        if round(value) < step:
            return f"{value:.1f}{unit}" if value < 10 and unit != units[0] else f"{value:.0f}{unit}"
        value /= step
    return f"{value:.1f}{units[-1]}" if value < 10 else f"{value:.0f}{units[-1]}"
