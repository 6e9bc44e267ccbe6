"""Memory and disk of the stages to run, against what is free here now."""

from __future__ import annotations

from collections.abc import Iterable

from align.pipeline.checks.finding import Finding
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import PlanEstimate, StageEstimate
from align.pipeline.estimate.table import size_text


def check_memory(stages: Iterable[StageEstimate], machine: Machine) -> list[Finding]:
    """Stages that need more memory than is free. Estimates are not exact, so none is refused."""
    return [Finding(stage.name, *said, action="warn", cause="machine") for stage in stages if (said := _memory(stage, machine))]


def _memory(stage: StageEstimate, machine: Machine) -> tuple[str, str] | None:
    chosen = stage.of_recipe
    if chosen is None or chosen.memory.peak <= machine.free_for(chosen.spread):
        return None
    place = "" if machine.device == "cpu" else f" on {machine.name}"
    each = " in each process" if chosen.spread.processes > 1 else ""
    free = size_text(machine.free_for(chosen.spread))
    text = f"needs about {size_text(chosen.memory.peak)} of memory{each}; {free} are free{place}"
    smaller = [other for other in stage.estimates if other.memory.peak <= machine.free_for(other.spread)]
    if smaller:
        # The largest that fits gives up least.
        best = max(smaller, key=lambda other: other.trainable_parameters)
        return text, f"peft: {{method: {best.method}}} needs about {size_text(best.memory.peak)}"
    return text, "Lower max_tokens and micro_batch_size, or take a smaller model: `align docs memory`"


def check_disk(recipe: str, estimate: PlanEstimate, to_run: Iterable[str]) -> list[Finding]:
    """Whether what the stages to run keep, and the most that one has beside it while it trains, is more than is free."""
    names = set(to_run)
    chosen = [found for stage in estimate.stages if stage.name in names and (found := stage.of_recipe) is not None]
    kept = sum(found.kept_bytes for found in chosen)
    needed = kept + max((found.disk_bytes - found.kept_bytes for found in chosen), default=0)
    if needed <= estimate.machine.free_disk_bytes:
        return []
    text = f"the run writes about {size_text(needed)} to the disk, where {size_text(estimate.machine.free_disk_bytes)} are free"
    advice = "Free some space (`align store prune`), or write keep_epochs: none at sft stages; `align docs store`"
    return [Finding(recipe, text, advice, action="warn", cause="machine")]
