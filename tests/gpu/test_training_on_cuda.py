"""Training on a GPU, through a whole recipe. Each test has a twin that computes the same on a CPU."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.pipeline.recipe import load_recipe
from align.pipeline.run import run_recipe

pytestmark = pytest.mark.gpu

TRAINED = ("sft", "reward", "rs", "orpo", "ppo", "dpo")


@pytest.fixture(scope="module")
def finished(project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny recipe. No precision is set, so that `auto` chooses."""
    project = Path(shutil.copytree(project_template, tmp_path_factory.mktemp("cuda") / "project"))
    return run_recipe(load_recipe(project / "recipe.yaml"), project.parent / "runs").folder


@pytest.fixture(scope="module")
def manifests(finished: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in (finished / "stages").glob("*/manifest.json")}


def test_auto_is_bfloat16(manifests: dict[str, Any]) -> None:
    """CPU twin: tests/recipes/test_arithmetic_run.py::test_auto_is_float32_on_every_cpu."""
    import torch

    expected = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    assert {manifests[stage]["metrics"]["precision"] for stage in TRAINED} == {expected}


def test_sft_lowers_its_loss(finished: Path) -> None:
    """CPU twin: tests/recipes/test_arithmetic_run.py::test_a_whole_recipe_trains_in_bfloat16."""
    curve = [json.loads(line) for line in (finished / "stages" / "sft" / "metrics.jsonl").read_text().splitlines()]
    losses = [point["loss"] for point in curve if "loss" in point]
    assert losses[-1] < losses[0]


def test_dpo_starts_at_ln_2(manifests: dict[str, Any]) -> None:
    """CPU twin: tests/recipes/test_arithmetic_run.py::test_a_whole_recipe_trains_in_bfloat16."""
    # Policy and reference are one; in bfloat16 their log-probabilities differ by rounding where batches differ.
    assert manifests["dpo"]["metrics"]["loss_at_step_0"] == pytest.approx(math.log(2), abs=0.02)


def test_ppo_trains_on_what_was_sampled(manifests: dict[str, Any]) -> None:
    """CPU twin: tests/recipes/test_arithmetic_run.py::test_a_whole_recipe_trains_in_bfloat16."""
    # Sampler and trainer compute in bfloat16 with different kernels.
    assert manifests["ppo"]["metrics"]["rollout/sampler_gap"] < 0.05
