"""Seeds and rounds in the plan: what is the same result, and what is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config.recipe import Recipe
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe

ROUNDS = """\
  iterated:
    rounds: 2
    model: sft
    generate: {prompts: prompts, num_candidates: 3, max_completion_tokens: 8, max_prompt_tokens: 96, engine: transformers,
               shard_prompts: 4}
    score: {scorers: {rm: reward}}
    pairs: {scorer: rm, keep_truncated: true}
    dpo: {num_epochs: 3, learning_rate: 1e-3, batch_size: 4, max_tokens: 128, checkpoint_steps: 2}
"""


def fingerprints(recipe: Recipe, tmp_path: Path) -> dict[str, str]:
    return {stage.name: stage.fingerprint for stage in make_plan(recipe, tmp_path / "empty").stages}


@pytest.fixture
def plain(project: Path, tmp_path: Path) -> dict[str, str]:
    return fingerprints(load_recipe(project), tmp_path)


def with_rounds(project: Path) -> Path:
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  compare:", ROUNDS + "  compare:"))
    return recipe


def test_the_recipes_own_seed_written_at_a_stage_changes_nothing(project: Path, tmp_path: Path, plain: dict[str, str]) -> None:
    assert fingerprints(load_recipe(project, ["stages.sft.seed=5", "stages.sampled.seed=5"]), tmp_path) == plain


def test_the_seed_that_a_stage_runs_with_is_what_counts(project: Path, tmp_path: Path, plain: dict[str, str]) -> None:
    other = fingerprints(load_recipe(project, ["stages.dpo.seed=6"]), tmp_path)
    assert [name for name in plain if plain[name] != other[name]] == ["dpo", "compare"]
    everything = [f"stages.{name}.seed=6" for name in plain]
    assert fingerprints(load_recipe(project, everything), tmp_path) == fingerprints(load_recipe(project, ["seed=6"]), tmp_path)


def test_a_plan_knows_the_seed_of_every_stage(project: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(project, ["stages.dpo.seed=6"]), tmp_path / "empty")
    assert {stage.name: stage.seed for stage in plan.stages if stage.name in ("sft", "dpo")} == {"sft": 5, "dpo": 6}


def test_another_seed_is_a_reason(project_template: Path, finished_run: Path) -> None:
    plan = make_plan(load_recipe(project_template / "recipe.yaml", ["stages.dpo.seed=6"]), finished_run.parent)
    assert {stage.name: stage.reason for stage in plan.stages}["dpo"] == "seed: 5 → 6"


def test_the_first_round_is_the_same_as_stages_written_by_hand(project: Path, tmp_path: Path, plain: dict[str, str]) -> None:
    found = fingerprints(load_recipe(with_rounds(project)), tmp_path)
    assert found["iterated-1-generate"] == plain["sampled"]
    assert found["iterated-1-score"] == plain["scored"]
    assert found["iterated-1-pairs"] == plain["pairs"]
    assert found["iterated-1"] == plain["dpo"]
    assert len(set(found.values())) == len(found) - 4


def test_a_copy_for_the_recipes_seed_is_the_stage_itself(project: Path, tmp_path: Path, plain: dict[str, str]) -> None:
    overrides = ["stages.dpo.seeds=[5, 6]", "stages.compare.models=[sft, rs]"]
    found = fingerprints(load_recipe(project, overrides), tmp_path)
    assert found["dpo-s5"] == plain["dpo"]
    assert found["dpo-s6"] != plain["dpo"]


def test_stages_of_forms_are_chosen_by_their_names(project: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(with_rounds(project)), tmp_path / "empty", until="iterated-1-pairs")
    running = [stage.name for stage in plan.stages if stage.status == "run"]
    assert running == ["sft", "reward", "iterated-1-generate", "iterated-1-score", "iterated-1-pairs"]
