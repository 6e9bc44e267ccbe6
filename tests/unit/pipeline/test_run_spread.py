"""A run spreads its stages as its machine file says, and their manifests record it; the results are those of one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe
from align.config.machine_file import read_machine_settings
from align.errors import RecipeError
from align.pipeline.run import run_recipe
from align.pipeline.run_result import RunResult
from align.store.artifact import Entry, Manifest


def run(project: Path, out: Path, machine: dict[str, Any], *overrides: str, **options: Any) -> RunResult:
    recipe = load_recipe(project, overrides)
    return run_recipe(recipe, out, machine_file=read_machine_settings(machine, project, {}), **options)


def manifest(out: Path, stage: str) -> Manifest:
    found = Entry(out / "tiny" / "stages" / stage).read_manifest()
    assert found is not None
    return found


def test_sampling_in_two_workers(project: Path, finished_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
    old = manifest(out, "sampled")
    shutil.rmtree((out / "tiny" / "stages" / "sampled").resolve())
    run(project, out, {"sampling": {"engines": 2}}, until="sampled")
    new = manifest(out, "sampled")
    assert new.config["num_workers"] == 2
    assert new.machine == {"engines": 2, "tensor_parallel": 1, "pool": "processes"}
    assert old.machine == {}
    assert new.fingerprint == old.fingerprint
    assert new.files == old.files


@pytest.mark.slow
def test_a_training_in_two_processes(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    run(project, out, {"training": {"processes": 2}}, until="sft")
    found = manifest(out, "sft")
    assert found.machine == {"processes": 2, "strategy": "ddp"}
    assert run(project, out, {}, until="sft").stages[0]["status"] == "cached"


def test_a_run_in_process_is_one_process(project: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--in-process: training.processes is 2, but sft would train in this process alone"):
        run(project, tmp_path / "runs", {"training": {"processes": 2}}, until="sft", in_process=True)
