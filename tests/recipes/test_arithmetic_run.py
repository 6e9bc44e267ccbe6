"""The whole chain in bfloat16 autocast, which every CPU computes, natively or not. The other recipes run in float32."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from align.pipeline.recipe import load_recipe
from align.pipeline.run import run_recipe

pytestmark = pytest.mark.slow

TRAINED = ("sft", "reward", "rs", "orpo", "ppo", "dpo")


def manifests(run: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in (run / "stages").glob("*/manifest.json")}


def test_a_whole_recipe_trains_in_bfloat16(project: Path, tmp_path: Path) -> None:
    settings = [f"stages.{stage}.precision=bfloat16" for stage in TRAINED]
    result = run_recipe(load_recipe(project / "recipe.yaml", settings), tmp_path / "runs")
    found = manifests(result.folder)
    assert {found[stage]["metrics"]["precision"] for stage in TRAINED} == {"bfloat16"}
    # Policy and reference are one: exactly ln 2 in any arithmetic that computes them alike, off by rounding where batches differ.
    assert found["dpo"]["metrics"]["loss_at_step_0"] == pytest.approx(math.log(2), abs=0.02)
    # The sampler computes in float32, so that a gap below 1e-4 would mean that the trainer does too.
    assert 1e-4 < found["ppo"]["metrics"]["rollout/sampler_gap"] < 0.02


def test_auto_is_float32_on_every_cpu(finished_run: Path) -> None:
    found = manifests(finished_run)
    assert {found[stage]["metrics"]["precision"] for stage in TRAINED} == {"float32"}
    assert found["ppo"]["metrics"]["rollout/sampler_gap"] < 1e-4
