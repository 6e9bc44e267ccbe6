"""Every shipped recipe parses and plans, and what the recipes say of each other holds. Nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reduced import RECIPES

from align.pipeline.checks.plan import check_plan
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe


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


@pytest.mark.parametrize("name", ["dpo-vs-rejection-sampling", "preference-data", "preference-methods", "reward-hacking"])
def test_what_is_said_to_be_the_quickstart_is(name: str, tmp_path: Path) -> None:
    """Same fingerprints up to sft, so that a run beside the quickstart's does not do it again."""
    plans = [make_plan(load_recipe(RECIPES / recipe), tmp_path) for recipe in ("quickstart", name)]
    first, second = ({stage.name: stage.fingerprint for stage in plan.stages} for plan in plans)
    assert [first[stage] for stage in ("sft", "reward_model", "sft_best")] == [
        second[stage] for stage in ("sft", "reward_model", "sft_best")
    ]
