"""`align launch` as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Align = Callable[..., Any]


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project, in which nobody has chosen a machine."""
    monkeypatch.chdir(project)
    monkeypatch.delenv("ALIGN_MACHINE", raising=False)
    return project


def test_it_writes_says_how_to_submit_and_submits_nothing(align: Align, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = align("launch", ".", "--on", "slurm", "--gpus", "8", "--time", "12h", "--set", "seed=7")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines() == [f"Written: {here}/launch/tiny/job.sh", "Submit it: sbatch launch/tiny/job.sh"]
    script = (here / "launch" / "tiny" / "job.sh").read_text()
    assert "align run . --out runs --set seed=7 --machine" in script
    assert "export HF_HUB_OFFLINE=1" in script
    assert not (here / "runs" / "tiny").exists()


def test_several_nodes_train_together_unless_the_machine_file_says_how_many(align: Align, here: Path) -> None:
    answer = align("launch", ".", "--on", "slurm", "--nodes", "2", "--gpus", "8", "--write", "job", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["submit"] == ["sbatch", "job/job.sh"]
    assert told["submitted"] is None
    assert not any("first node" in note for note in told["notes"])
    written = (here / "job" / "machine.yaml").read_text()
    assert "engines: 16" in written
    assert "  processes: 8\n  nodes: 2\n" in written
    (here / "machine.yaml").write_text("training: {nodes: 1}")
    answer = align("launch", ".", "--on", "slurm", "--nodes", "2", "--gpus", "8", "--write", "other", "--json")
    assert "sft, reward, rs, orpo, ppo, dpo: training runs on the first node alone" in json.loads(answer.out)["notes"][0]


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ("training: {nodes: 3}", 2, "machine.yaml:1:19: training.nodes: 3, but the job has 2 nodes"),
        ("training: {processes: 8}", 4, "machine.yaml:1:23: training.processes: 8, but 4 GPUs are visible"),
        (
            "sampling: {tensor_parallel: 8}",
            2,
            "machine.yaml:1:29: sampling.tensor_parallel: an engine of 8 GPUs, but each node has",
        ),
    ],
)
def test_what_a_node_cannot_do_is_refused_before_anything_is_written(
    align: Align, here: Path, settings: str, code: int, message: str
) -> None:
    (here / "machine.yaml").write_text(settings)
    answer = align("launch", ".", "--on", "slurm", "--nodes", "2", "--gpus", "4")
    assert answer.code == code
    assert message in answer.err
    assert not (here / "launch").exists()


def test_the_recipe_is_checked(align: Align, here: Path) -> None:
    (here / "held_out.jsonl").unlink()
    answer = align("launch", ".", "--on", "slurm")
    assert answer.code == 2
    assert "held_out.jsonl" in answer.err
    assert not (here / "launch").exists()


def test_without_sbatch_the_job_is_kept(align: Align, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    answer = align("launch", ".", "--on", "slurm", "--submit")
    assert answer.code == 4
    assert "sbatch launch/tiny/job.sh" in answer.err
    assert (here / "launch" / "tiny" / "job.sh").exists()
