"""Where the time of a run went: a row for each stage that ran, a column for each phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from align.runtime.profile import PHASES

LEAST_SECONDS = 0.05
"""Columns with less in every row are left out."""


def profile_table(stages: Sequence[Mapping[str, Any]], seconds: float, overlap: float = 0.0) -> Table:
    """The table, in seconds.

    Args:
        stages: as in the result of a run; those that ran have `phases`, seconds by phase that add up to their time.
        seconds: time of the whole run.
        overlap: what counts more than once in the sum of the stages' times, as they ran side by side.
    """
    rows = {stage["name"]: dict(stage["phases"]) for stage in stages if "phases" in stage}
    outside = seconds + overlap - sum(sum(phases.values()) for phases in rows.values())
    rows["between stages"] = {"other": max(outside, 0.0)}
    sums = {phase: sum(phases.get(phase, 0.0) for phases in rows.values()) for phase in PHASES}
    shown = [phase for phase in PHASES if any(phases.get(phase, 0.0) >= LEAST_SECONDS for phases in rows.values())]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
    table.add_column("seconds", overflow="fold")
    for header in ("all", *shown):
        table.add_column(header, justify="right", no_wrap=True)
    for name, phases in rows.items():
        table.add_row(name, f"{sum(phases.values()):.1f}", *(_text(phases.get(phase, 0.0)) for phase in shown))
    if overlap >= LEAST_SECONDS:
        table.add_row("side by side", f"-{overlap:.1f}")
    table.add_section()
    table.add_row("all", f"{seconds:.1f}", *(_text(sums[phase]) for phase in shown))
    table.add_row("share", "100 %", *(f"{100 * sums[phase] / (seconds + overlap):.0f} %" for phase in shown))
    return table


def _text(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= LEAST_SECONDS else ""
