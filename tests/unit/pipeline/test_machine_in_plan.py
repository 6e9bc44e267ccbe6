"""The machine file in a plan: it is read by commands and from Python, and changes no fingerprint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import align
from align import load_recipe
from align.config.machine_file import MachineChoice, read_machine_settings
from align.pipeline.plan import Plan, make_plan

MACHINES: list[dict[str, Any] | None] = [
    None,
    {"training": {"processes": 2, "strategy": "ddp"}},
    {"training": {"processes": 4, "strategy": "fsdp2", "hang_minutes": 5}},
    {"sampling": {"engines": 3, "tensor_parallel": 2, "pool": "ray"}, "ray": {"address": "10.0.0.1:6379"}},
]


def plan_with(project: Path, machine: MachineChoice) -> Plan:
    machine_file = read_machine_settings(machine, project, {})
    return make_plan(load_recipe(project), project / "none", machine_file=machine_file)


def test_no_fingerprint_depends_on_the_machine_file(project: Path) -> None:
    plans = [plan_with(project, machine) for machine in MACHINES]
    names = [[(stage.name, stage.fingerprint) for stage in plan.stages] for plan in plans]
    assert all(one == names[0] for one in names)
    assert len({json.dumps(plan.to_json()["machine_file"]) for plan in plans}) == len(MACHINES)
    assert len({json.dumps(plan.recipe.resolved()) for plan in plans}) == 1


def test_a_plan_reads_the_file_of_the_option_the_variable_or_the_folder(
    project: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def processes(*options: str) -> object:
        return json.loads(plan(options=("--json", *options)).out)["machine_file"]["training"]["processes"]

    assert processes() == "auto"
    (project / "machine.yaml").write_text("training: {processes: 1}\n")
    assert processes() == 1
    (project / "two.yaml").write_text("training: {processes: 2}\n")
    monkeypatch.setenv("ALIGN_MACHINE", str(project / "two.yaml"))
    assert processes() == 2
    assert processes("--machine", str(project / "machine.yaml")) == 1


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_mistake_stops_before_anything_else(project: Path, plan: Any, command: str) -> None:
    (project / "bad.yaml").write_text("training:\n  num_processes: 2\n")
    answer = plan(options=("--machine", "bad.yaml"), command=command)
    assert answer.code == 2
    assert answer.err.splitlines()[0] == "error: bad.yaml:2:3: training.num_processes: unknown key; did you mean 'processes'?"
    assert not (project / "runs").exists()


def test_python_takes_a_file_or_a_mapping(project: Path, tmp_path: Path) -> None:
    (project / "wide.yaml").write_text("sampling: {engines: many}\n")
    with pytest.raises(align.RecipeError, match=r"wide.yaml:1:21: sampling.engines: expected"):
        align.plan(project, tmp_path / "runs", machine=project / "wide.yaml")
    with pytest.raises(align.RecipeError, match=r"machine: sampling.engines: must be at least 1"):
        align.run_recipe(project, tmp_path / "runs", machine={"sampling": {"engines": 0}})
    planned = align.plan(project, tmp_path / "runs", machine={"sampling": {"engines": 1}})
    assert [row["status"] for row in planned] == ["run"] * len(planned)
    assert os.environ.get("ALIGN_MACHINE") is None
