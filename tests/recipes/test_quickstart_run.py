"""Every shipped recipe at reduced size, end to end, as a newcomer runs it: copied, then run by the command line to its table."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.report.results import Results

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {"instructions": 160, "preferences": 200, "prompts": 48, "validation": 16, "held_out": 40}
# Few instructions and pairs make a weak reward model; its margins are small.
SMALL_QUICKSTART = (
    "stages.sft.num_epochs=2",
    "stages.pairs.min_margin=0.0",
    "stages.dpo.pairs.min_margin=0.0",
    "stages.ppo.num_episodes=32",
    "stages.ppo.rollout_batch_size=16",
    "stages.ppo.mini_batch_size=8",
)


@pytest.mark.parametrize("recipe", sorted(path.parent.name for path in RECIPES.glob("*/recipe.yaml")))
def test_every_shipped_recipe_parses_and_plans(recipe: str, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(RECIPES / recipe), tmp_path)
    assert {stage.status for stage in plan.stages} == {"run"}
    assert (RECIPES / recipe / "README.md").exists()


def test_no_training_stage_of_the_quickstart_can_see_the_gold_rules() -> None:
    recipe = load_recipe(RECIPES / "quickstart")
    with_rules = [name for name, node in recipe.stages.items() if "rules" in json.dumps(node.config.model_dump(mode="json"))]
    assert with_rules == ["compare"]
    assert not [name for name, node in recipe.stages.items() if "compare" in {reference for _, reference in node.references}]


def test_where_gold_is_watched_it_decides_nothing() -> None:
    for name in ("ppo_kl", "ppo_no_kl"):
        config = load_recipe(RECIPES / "reward-hacking").stages[name].config.model_dump(mode="json")
        assert list(config["watch"]) == ["gold"] and list(config["scorers"]) == ["rm"]


@pytest.mark.parametrize("name", ["dpo-vs-rejection-sampling", "preference-data", "reward-hacking"])
def test_what_is_said_to_be_the_quickstart_is(name: str, tmp_path: Path) -> None:
    """Same fingerprints up to sft, so that a run beside the quickstart's does not do it again."""
    plans = [make_plan(load_recipe(RECIPES / recipe), tmp_path) for recipe in ("quickstart", name)]
    first, second = ({stage.name: stage.fingerprint for stage in plan.stages} for plan in plans)
    assert [first[stage] for stage in ("sft", "reward_model", "sft_best")] == [
        second[stage] for stage in ("sft", "reward_model", "sft_best")
    ]


def reduced(name: str, folder: Path, **sizes: int) -> Path:
    """A copy of a recipe with the first rows of each file."""
    assert align("recipes", "copy", name, str(folder)).returncode == 0
    for kind, size in {**SIZES, **sizes}.items():
        (path,) = folder.glob(f"**/{kind}.jsonl")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:size]))
    for retention in folder.glob("**/retention.txt"):
        retention.write_text("".join(retention.read_text().splitlines(keepends=True)[:20]))
    return folder


def align(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "align.cli.main", *arguments], capture_output=True, text=True, check=False)


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_from_base_model_to_table(tmp_path: Path) -> None:
    recipe, settings = reduced("quickstart", tmp_path / "mine"), overrides(*SMALL_QUICKSTART)
    first = align("run", str(recipe), "--out", str(tmp_path), *settings)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "quickstart"
    assert "sft_best" in first.stdout
    assert "gold" in first.stdout
    assert str(run / "report.html") in first.stdout
    assert "compare: done" in first.stderr

    results = Results.from_json(json.loads((run / "results.json").read_text()))
    models = ["sft_best", "rejection_sampling", "orpo", "dpo-1", "dpo-2", "ppo"]
    assert list(results.models) == models
    assert results.prompts == SIZES["held_out"]
    assert results.engine.name == "vllm"
    assert results.models["sft_best"].scores["gold"].mean > 0.1
    manifests: dict[str, Any] = {
        path.parent.name: json.loads(path.read_text()) for path in (run / "stages").glob("*/manifest.json")
    }
    assert manifests["candidates"]["versions"]["vllm"] == results.engine.version
    assert manifests["candidates"]["metrics"]["finish_reasons"]["stop"] > 0
    assert manifests["candidates"]["fingerprint"] == manifests["dpo-1-generate"]["fingerprint"]
    assert manifests["reward_model"]["metrics"]["pairs_held_out"] > 0
    assert manifests["sft_best"]["metrics"]["epochs"].keys() == {"1", "2"}
    ppo = manifests["ppo"]
    assert ppo["versions"]["vllm"] == results.engine.version
    # What is shipped for CPUs computes in float32 on every CPU, whatever it could do, so that tables can be compared.
    trained = {name: m["metrics"]["precision"] for name, m in manifests.items() if "precision" in m["metrics"]}
    assert set(trained) == {"sft", "reward_model", "rejection_sampling", "orpo", "dpo-1", "dpo-2", "ppo"}
    assert set(trained.values()) == {"float32"}
    assert ppo["metrics"]["rollout/sampler_gap"] < 1e-4

    second = align("run", str(recipe), "--out", str(tmp_path), *settings, "--json")
    assert second.returncode == 0, second.stderr
    answer = json.loads(second.stdout)
    assert {stage["status"] for stage in answer["stages"]} == {"cached"}
    assert list(answer["results"]["models"]) == models

    plan = align("plan", str(recipe), "--out", str(tmp_path), *settings, "--set", "stages.ppo.kl_coef=0.3", "--json")
    assert [stage["name"] for stage in json.loads(plan.stdout)["stages"] if stage["status"] == "run"] == ["ppo", "compare"]


def run_small(name: str, tmp_path: Path, *settings: str) -> Results:
    sizes = {"instructions": 48, "preferences": 60, "prompts": 12, "validation": 4, "held_out": 6}
    recipe = reduced(name, tmp_path / "mine", **sizes)
    common = ["stages.sft.num_epochs=1", *(f"stages.{stage}.max_completion_tokens=16" for stage in ("sft_best", "compare"))]
    engines = [f"stages.{stage}.engine=transformers" for stage in ("sft_best", "compare")]
    common += ["stages.compare.num_candidates=1", "stages.compare.bootstrap_resamples=1000"]
    done = align("run", str(recipe), "--out", str(tmp_path), *overrides(*common, *engines, *settings))
    assert done.returncode == 0, done.stderr
    return Results.from_json(json.loads((tmp_path / name / "results.json").read_text()))


def test_dpo_against_rejection_sampling(tmp_path: Path) -> None:
    results = run_small(
        "dpo-vs-rejection-sampling",
        tmp_path,
        "stages.candidates.engine=transformers",
        "stages.candidates.max_completion_tokens=16",
        "stages.best_of_n.keep_truncated=true",
        "stages.pairs.keep_truncated=true",
        "stages.pairs.min_margin=0.0",
    )
    assert [row for row in results.models if "best of" not in row] == ["sft_best", "rejection_sampling", "dpo"]
    assert [row for row in results.models if "best of" in row] == [f"sft_best best of {n}" for n in (1, 2, 4, 8, 16)]
    assert list(results.models["rejection_sampling"].replicates or {}) == [f"rejection_sampling-s{seed}" for seed in (17, 18, 19)]
    assert results.models["sft_best best of 4"].kl_bound == pytest.approx(math.log(4) - 3 / 4)


def test_every_way_of_pairing(tmp_path: Path) -> None:
    ways = [name for name in load_recipe(RECIPES / "preference-data").stages if name.endswith("-pairs-s17")]
    names = [way.removesuffix("-pairs-s17") for way in ways]
    results = run_small(
        "preference-data",
        tmp_path,
        "stages.candidates.seeds=[17]",
        "stages.candidates.engine=transformers",
        "stages.candidates.max_completion_tokens=16",
        "stages.margin-window-pairs.min_margin=0.0",
        "stages.margin-window-pairs.max_margin=100.0",
        "stages.length-matched-pairs.max_length_ratio=10.0",
        "stages.agreed-pairs.min_agreement=0.0",
        *(f"stages.{name}-pairs.keep_truncated=true" for name in names),
        *(f"stages.{name}.num_epochs=1" for name in names),
    )
    assert set(results.models) == {"sft_best", *names}
    assert len(names) == 11


def test_reward_hacking(tmp_path: Path) -> None:
    small = ("num_episodes=8", "rollout_batch_size=4", "mini_batch_size=4", "max_completion_tokens=16", "engine=transformers")
    results = run_small("reward-hacking", tmp_path, *(f"stages.{stage}.{s}" for stage in ("ppo_kl", "ppo_no_kl") for s in small))
    assert [row for row in results.models if "best of" not in row] == ["sft_best", "ppo_kl", "ppo_no_kl"]
    assert "optimised and watched scores" in (tmp_path / "reward-hacking" / "report.html").read_text()


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
