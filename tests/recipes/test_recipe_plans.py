"""Every shipped recipe parses and plans, and what the recipes say of each other holds. Nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from reduced import RECIPES

from align.pipeline.checks.plan import check_plan
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe

JUDGED = ("dpo-vs-rejection-sampling", "preference-data", "reward-hacking", "tuning")
JUDGE = {"judge": ["compare"], "other_preferences": ["judge"]}
"""Which stages read the judge and its preferences."""


@pytest.mark.parametrize("recipe", sorted(path.parent.name for path in RECIPES.glob("*/recipe.yaml")))
def test_every_shipped_recipe_parses_and_plans(recipe: str, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(RECIPES / recipe), tmp_path)
    assert {stage.status for stage in plan.stages} == {"run"}
    assert check_plan(plan) == []
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


@pytest.fixture(scope="module")
def fingerprints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Of the stages of a recipe, by its name."""
    out = tmp_path_factory.mktemp("runs")
    return cache(lambda name: {stage.name: stage.fingerprint for stage in make_plan(load_recipe(RECIPES / name), out).stages})


@pytest.mark.parametrize(("name", "shared"), [("preference-methods", 3), *((name, 1) for name in JUDGED)])
def test_what_is_said_to_be_the_quickstart_is(name: str, shared: int, fingerprints: Callable[[str], dict[str, str]]) -> None:
    """Same fingerprints, so that a run beside the quickstart's does not do these stages again."""
    first, second = fingerprints("quickstart"), fingerprints(name)
    stages = ("sft", "reward_model", "sft_best")
    assert [first[stage] == second[stage] for stage in stages] == [place < shared for place in range(len(stages))]


def test_a_first_seed_is_shared_with_the_search(fingerprints: Callable[[str], dict[str, str]]) -> None:
    first, second = fingerprints("dpo-vs-rejection-sampling"), fingerprints("tuning")
    assert all(second[stage] == first[stage] for stage in ("reward_model", "judge", "sft_best"))
    seeded = ("candidates", "scores", "best_of_n", "pairs", "rejection_sampling", "dpo")
    assert all(second[stage] == first[f"{stage}-s17"] for stage in seeded)
    # The grids contain the settings of the stages that are not tuned.
    assert {second["dpo"], second["rejection_sampling"]} <= {second[name] for name in second if "-trial-" in name}


@pytest.mark.parametrize("name", JUDGED)
def test_only_the_comparison_reads_the_judge_and_its_preferences(name: str) -> None:
    recipe = load_recipe(RECIPES / name)
    for used, readers in JUDGE.items():
        assert [stage for stage, node in recipe.stages.items() if used in {to for _, to in node.references}] == readers
    assert recipe.stages["compare"].config.deciding_scorer == "judge"  # type: ignore[attr-defined]
    halves = [recipe.inputs[half].share for half in ("preferences", "other_preferences")]  # type: ignore[union-attr]
    assert halves == [[0, 0.5], [0.5, 1]]
