"""The quickstart at reduced size, end to end, as a newcomer runs it: the command line, real vLLM, a table."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.report.results import Results

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {"instructions": 240, "preferences": 200, "prompts": 60, "held_out": 40}


@pytest.mark.parametrize("recipe", sorted(path.parent.name for path in RECIPES.glob("*/recipe.yaml")))
def test_every_shipped_recipe_parses_and_plans(recipe: str, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(RECIPES / recipe), tmp_path)
    assert {stage.status for stage in plan.stages} == {"run"}
    assert (RECIPES / recipe / "README.md").exists()


def test_no_training_stage_can_see_the_gold_rules() -> None:
    recipe = load_recipe(RECIPES / "quickstart")
    with_rules = [name for name, node in recipe.stages.items() if "rules" in json.dumps(node.config.model_dump(mode="json"))]
    assert with_rules == ["compare"]
    assert not [name for name, node in recipe.stages.items() if "compare" in {reference for _, reference in node.references}]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart with the first rows of each file."""
    folder = tmp_path_factory.mktemp("reduced") / "quickstart"
    shutil.copytree(RECIPES / "quickstart", folder)
    for name, size in SIZES.items():
        path = folder / "data" / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:size]))
    retention = folder / "data" / "retention.txt"
    retention.write_text("".join(retention.read_text().splitlines(keepends=True)[:20]))
    return folder


def align(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "align.cli.main", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_from_base_model_to_table(reduced: Path, tmp_path: Path) -> None:
    # 240 lessons and 140 pairs make a weak reward model; its margins are small.
    any_margin = ("--set", "stages.pairs.min_margin=0.0")
    first = align("run", str(reduced), "--out", str(tmp_path), *any_margin)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "quickstart"
    assert "sft" in first.stdout
    assert "gold" in first.stdout
    assert str(run / "report.html") in first.stdout
    assert "compare: done" in first.stderr

    results = Results.from_json(json.loads((run / "results.json").read_text()))
    assert list(results.models) == ["sft", "rs", "dpo"]
    assert results.prompts == SIZES["held_out"]
    assert results.engine.name == "vllm"
    assert results.models["sft"].scores["gold"].mean > 0.1
    sampled: dict[str, Any] = json.loads((run / "stages" / "sampled" / "manifest.json").read_text())
    assert sampled["versions"]["vllm"] == results.engine.version
    assert sampled["metrics"]["finish_reasons"]["stop"] > 0
    reward: dict[str, Any] = json.loads((run / "stages" / "reward" / "manifest.json").read_text())
    assert reward["metrics"]["pairs_held_out"] > 0

    second = align("run", str(reduced), "--out", str(tmp_path), *any_margin, "--json")
    assert second.returncode == 0, second.stderr
    answer = json.loads(second.stdout)
    assert {stage["status"] for stage in answer["stages"]} == {"cached"}
    assert answer["results"]["models"].keys() == {"sft", "rs", "dpo"}

    plan = align("plan", str(reduced), "--out", str(tmp_path), *any_margin, "--set", "stages.dpo.beta=0.3", "--json")
    assert [stage["name"] for stage in json.loads(plan.stdout)["stages"] if stage["status"] == "run"] == ["dpo", "compare"]


def test_one_stage_without_a_recipe(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    done = align(
        "stage", "sft", "--model", str(project / "base"), "--data", str(project / "instructions.jsonl"),
        "--max-tokens", "128", "--batch-size", "4", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = out / "stages" / "sft" / "model" / "model.safetensors"
    assert weights.resolve().is_relative_to(out.resolve())
    assert {path.name for path in tmp_path.iterdir()} == {"one", "project"}
