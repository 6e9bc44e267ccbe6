"""What `auto` comes to: the plain way where it fits, else fewer rows in a pass, else gradient checkpointing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from align import load_recipe
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import Estimate
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.estimate.table import _verdict
from align.pipeline.plan import make_plan
from align.runtime.context import PLAIN, MemoryChoice

GIB = 1 << 30
CPU = Machine("cpu", "memory", 8 * GIB, 8 * GIB, 50 * GIB, has_bfloat16=False)
GPU = replace(CPU, device="cuda", name="NVIDIA L4")
BATCH = "stages.sft.batch_size=12"


def estimate(project: Path, machine: Machine, *overrides: str, stage: str = "sft") -> Estimate:
    plan = make_plan(load_recipe(project / "recipe.yaml", overrides), project / "none")
    (found,) = [estimated.of_recipe for estimated in estimate_plan(plan, machine).stages if estimated.name == stage]
    assert found is not None
    return found


def peak(project: Path, machine: Machine, micro: int, on: str, *more: str) -> int:
    settings = (f"stages.sft.micro_batch_size={micro}", f"stages.sft.gradient_checkpointing={on}")
    return estimate(project, machine, BATCH, *settings, *more).memory.peak


def test_where_everything_fits_nothing_is_done(project: Path) -> None:
    plan = make_plan(load_recipe(project), project / "none")
    for machine in (CPU, GPU):
        choices = {found.choice for stage in estimate_plan(plan, machine).stages for found in stage.estimates}
        assert choices == {PLAIN}


@pytest.mark.parametrize(("micro", "on"), [(12, "false"), (6, "false"), (4, "false"), (1, "true")])
def test_the_fastest_way_that_fits(project: Path, micro: int, on: str) -> None:
    """Of 12 rows: 12, 6, 4, 3, 2, 1 without gradient checkpointing, then with it."""
    room = peak(project, GPU, micro, on)
    found = estimate(project, replace(GPU, free_bytes=room), BATCH)
    assert found.choice == MemoryChoice(None if micro == 12 else micro, on == "true")
    assert found.memory.peak == room


def test_the_smallest_where_nothing_fits(project: Path) -> None:
    found = estimate(project, replace(GPU, free_bytes=GIB // 8), BATCH)
    assert found.choice == MemoryChoice(1, True)
    assert _verdict(found, replace(GPU, free_bytes=GIB // 8)) == "does not fit (128 MiB)"
    assert _verdict(found, GPU) == "fits with micro_batch_size 1 and gradient_checkpointing"


def test_what_the_recipe_says_stays(project: Path) -> None:
    small = replace(GPU, free_bytes=GIB // 8)
    fixed, off = "stages.sft.micro_batch_size=6", "stages.sft.gradient_checkpointing=false"
    assert estimate(project, small, BATCH, fixed).choice == MemoryChoice(None, True)
    assert estimate(project, small, BATCH, off).choice == MemoryChoice(1, False)
    assert estimate(project, small, BATCH, fixed, off).choice == PLAIN
    assert estimate(project, small, stage="ppo").choice == MemoryChoice(None, True)


def test_the_bytes_of_a_cpu_do_not_depend_on_what_is_free(project: Path) -> None:
    """The size of a pass changes rounding; gradient checkpointing does not."""
    busy, small = replace(CPU, free_bytes=GIB // 8), replace(CPU, total_bytes=GIB // 8, free_bytes=GIB // 8)
    assert estimate(project, busy, BATCH).choice == MemoryChoice(None, True)
    assert estimate(project, small, BATCH).choice == MemoryChoice(1, True)
