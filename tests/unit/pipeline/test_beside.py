"""Which stages run side by side: recipe, machine file and machine decide, never what has run already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe
from align.config.machine_file import read_machine_settings
from align.pipeline.beside import group_lines, groups_of, shares_of, side_by_side
from align.pipeline.estimate.duration import DurationEstimator
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.estimate.spread_view import stage_spreads
from align.pipeline.estimate.stage_time import StageTime, time_sentence
from align.pipeline.plan import Plan, make_plan
from align.runtime.share import WHOLE, Share

GIB = 1 << 30
CPU = Machine("cpu", "memory", 8 * GIB, 8 * GIB, 50 * GIB, has_bfloat16=False)
EIGHT = Machine("cuda", "NVIDIA L4", 24 * GIB, 23 * GIB, 50 * GIB, has_bfloat16=True, num_gpus=8)
SINGLES = ["sft", "reward", "sampled", "scored", "best", "pairs"]


def plan_of(project: Path, at_once: int | None, *overrides: str, **sections: Any) -> Plan:
    machine = sections if at_once is None else {"schedule": {"at_once": at_once}, **sections}
    return make_plan(load_recipe(project, overrides), project / "none", machine_file=read_machine_settings(machine, project, {}))


def names(plan: Plan, on: Machine, threads: int = 2) -> list[list[str]]:
    return [[stage.name for stage in group.stages] for group in groups_of(plan, on, threads)]


@pytest.mark.parametrize("at_once", [None, 1])
def test_one_by_one_is_the_order_of_the_recipe(project: Path, at_once: int | None) -> None:
    plan = plan_of(project, at_once)
    assert names(plan, CPU) == [[stage.name] for stage in plan.stages]
    assert group_lines(groups_of(plan, CPU, 2)) == []


def test_auto_uses_all_gpus_and_leaves_a_cpu_to_one_stage(project: Path) -> None:
    plan = plan_of(project, None)
    assert max(map(len, names(plan, CPU, threads=64))) == 1
    assert max(map(len, names(plan, replace(EIGHT, num_gpus=1)))) == 1
    assert names(plan, EIGHT) == names(plan_of(project, 8), EIGHT)
    assert max(map(len, names(plan, replace(EIGHT, num_gpus=2)))) == 2


def test_trainings_that_need_no_result_of_each_other_share_the_threads(project: Path) -> None:
    plan = plan_of(project, 2)
    expected = [*([name] for name in SINGLES), ["rs", "orpo"], ["ppo"], ["dpo"], ["compare"]]
    assert names(plan, CPU) == expected
    shares = shares_of(groups_of(plan, CPU, 2))
    assert (shares["rs"], shares["orpo"], shares["dpo"]) == (Share(parts=2), Share(parts=2), WHOLE)
    assert group_lines(groups_of(plan, CPU, 2)) == ["Side by side:", "  rs and orpo, each with 1/2 of the threads"]
    assert names(plan_of(project, 3), CPU, threads=8)[6] == ["rs", "orpo", "dpo"]
    assert names(plan_of(project, 3), CPU, threads=2) == expected


def test_what_has_run_already_changes_nothing(project: Path) -> None:
    plan = plan_of(project, 2)
    before = shares_of(groups_of(plan, CPU, 2))
    done = [replace(stage, status="run" if stage.name in ("orpo", "compare") else "cached") for stage in plan.stages]
    partly = replace(plan, stages=done)
    assert shares_of(groups_of(partly, replace(CPU, free_bytes=GIB), 2)) == before
    assert side_by_side(groups_of(partly, CPU, 2)) == []


def test_a_second_name_for_a_result_comes_after_it(project: Path) -> None:
    text = (project / "recipe.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("  rs:"))
    (project / "recipe.yaml").write_text(text.replace(line, f"{line}\n{line.replace('  rs:', '  again:')}"))
    order = names(plan_of(project, 2), CPU)
    assert order.index(["rs", "orpo"]) < order.index(["again"])


@pytest.mark.parametrize(
    ("on", "sections"),
    [
        (replace(CPU, total_bytes=GIB * 9 // 10), {}),
        (CPU, {"training": {"processes": 2}}),
        (CPU, {"training": {"strategy": "fsdp2"}}),
    ],
    ids=["memory", "processes", "strategy"],
)
def test_trainings_that_need_the_whole_computer_run_alone(project: Path, on: Machine, sections: dict[str, Any]) -> None:
    assert max(map(len, names(plan_of(project, 2, **sections), on))) == 1


def test_gpus_are_divided_among_trainings_and_samplers(project: Path) -> None:
    plan = plan_of(project, 3)
    groups = groups_of(plan, EIGHT)
    assert side_by_side(groups) == [["reward", "sampled"], ["rs", "orpo", "dpo"]]
    shares = shares_of(groups)
    assert shares["reward"].gpus == (0, 1, 2, 3)
    assert [shares[name].gpus for name in ("rs", "orpo", "dpo")] == [(0, 1, 2), (3, 4, 5), (6, 7)]
    assert "  reward (GPUs 0, 1, 2, 3) and sampled (GPUs 4, 5, 6, 7)" in group_lines(groups)
    estimate = estimate_plan(plan, EIGHT, shares)
    spreads = {found.name: found.text for found in stage_spreads(plan, estimate)}
    assert (spreads["sampled"], spreads["ppo"]) == ("4 engines", "4 processes, ddp, 4 engines")
    assert (spreads["orpo"], spreads["dpo"]) == ("3 processes, ddp", "2 processes, ddp")


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"processes": 8}, "sampling": {"tensor_parallel": 8}},
        {"sampling": {"devices": [7]}},
        {"sampling": {"pool": "ray"}},
    ],
    ids=["all", "devices", "ray"],
)
def test_stages_that_need_other_gpus_run_alone(project: Path, sections: dict[str, Any]) -> None:
    overrides = [f"stages.{name}.batch_size=8" for name in ("sft", "rs", "orpo", "dpo", "reward")]
    assert max(map(len, names(plan_of(project, 4, *overrides, **sections), EIGHT))) == 1


def test_a_model_that_does_not_fit_into_its_part_runs_alone(project: Path) -> None:
    tight = replace(EIGHT, total_bytes=1 << 20)
    together = [group for group in names(plan_of(project, 3), tight) if len(group) > 1]
    assert together == []


def test_stages_side_by_side_take_the_time_of_the_longest(project: Path) -> None:
    times = [StageTime("a", 60.0), StageTime("b", 240.0), StageTime("c", 180.0)]
    assert time_sentence(times, [["b", "c"]]) == "Time: about 5 min in all."
    plan = plan_of(project, 2)
    order = [group.stages for group in groups_of(plan, CPU, 2)]
    estimator = DurationEstimator(plan, order=order)
    seconds = {"rs": 30.0, "orpo": 50.0, "ppo": 7.0}
    estimator.seconds = lambda stage: seconds.get(stage.name, 0.0)  # type: ignore[method-assign]
    stages = {stage.name: stage for stage in plan.stages}
    assert estimator.later_seconds(stages["pairs"]) == 57.0
    assert estimator.later_seconds(stages["rs"]) == estimator.later_seconds(stages["orpo"]) == 7.0
