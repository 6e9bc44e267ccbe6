"""The plan: what is cached, what runs, and why. No stage is run here but those of the finished tiny project."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from align.errors import RecipeError
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.testing.damage import flip


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to plan against."""
    return Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))


def statuses(recipe_path: Path, out: Path, *overrides: str, **choice: str) -> dict[str, tuple[str, str]]:
    plan = make_plan(load_recipe(recipe_path, overrides), out, **choice)  # type: ignore[arg-type]
    return {stage.name: (stage.status, stage.reason) for stage in plan.stages}


def running(recipe_path: Path, out: Path, *overrides: str, **choice: str) -> list[str]:
    return [name for name, (status, _) in statuses(recipe_path, out, *overrides, **choice).items() if status == "run"]


def test_everything_runs_the_first_time_in_the_order_of_need(project: Path, tmp_path: Path) -> None:
    plan = statuses(project / "recipe.yaml", tmp_path / "empty")
    assert list(plan) == ["sft", "reward", "sampled", "scored", "best", "rs", "pairs", "orpo", "ppo", "dpo", "compare"]
    assert set(plan.values()) == {("run", "no result yet")}


def test_nothing_runs_the_second_time(project: Path, out: Path) -> None:
    assert running(project / "recipe.yaml", out) == []


def test_a_changed_beta_runs_dpo_and_what_follows(project: Path, out: Path) -> None:
    plan = statuses(project / "recipe.yaml", out, "stages.dpo.beta=0.3")
    assert [name for name, (status, _) in plan.items() if status == "run"] == ["dpo", "compare"]
    assert plan["dpo"][1] == "beta: 0.1 → 0.3"
    assert plan["compare"][1] == "dpo changes"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.scored.batch_tokens=64", ["scored", "best", "rs", "pairs", "orpo", "dpo", "compare"]),
        ("stages.sampled.num_workers=2", []),
        ("stages.sft.checkpoint_steps=7", []),
        ("stages.compare.bootstrap_resamples=300", ["compare"]),
        ("stages.pairs.policy=best_vs_second", ["pairs", "orpo", "dpo", "compare"]),
    ],
)
def test_only_what_can_change_a_byte_runs_again(project: Path, out: Path, override: str, expected: list[str]) -> None:
    assert running(project / "recipe.yaml", out, override) == expected


def test_a_changed_row_runs_what_was_made_from_it(project: Path, out: Path) -> None:
    data = project / "preferences.jsonl"
    data.write_text(data.read_text().replace("That must hurt.", "That must really hurt.", 1))
    plan = statuses(project / "recipe.yaml", out)
    assert plan["sft"][0] == "cached"
    assert plan["reward"] == ("run", "comparisons changed")


def test_names_of_inputs_and_stages_do_not_matter(project: Path, out: Path) -> None:
    recipe = project / "recipe.yaml"
    text = recipe.read_text().replace("instructions: {kind", "lessons: {kind").replace("data: instructions", "data: lessons")
    recipe.write_text(text)
    assert running(recipe, out) == []


def test_names_of_compared_models_do(project: Path, out: Path) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  rs:  ", "  best_sft:").replace("[sft, rs, dpo]", "[sft, best_sft, dpo]"))
    assert running(recipe, out) == ["compare"]


def test_damage_is_a_reason(project: Path, out: Path) -> None:
    weights = next((out / "tiny" / "stages" / "dpo").resolve().glob("model/model.safetensors"))
    flip(weights)
    plan = statuses(project / "recipe.yaml", out)
    status, reason = plan["dpo"]
    assert status == "run"
    assert reason.startswith("damaged: model/model.safetensors does not have the content it was written with (sha256 ")
    # Its result will be the same bytes again, so what was made from it stays.
    assert plan["compare"][0] == "cached"


def test_parts_can_be_chosen(project: Path, out: Path, tmp_path: Path) -> None:
    recipe, empty = project / "recipe.yaml", tmp_path / "empty"
    assert running(recipe, empty, until="scored") == ["sft", "reward", "sampled", "scored"]
    assert running(recipe, out, "stages.sft.learning_rate=0.5", only="sft") == ["sft"]
    assert running(recipe, out, "stages.pairs.min_margin=0.1", start="pairs") == ["pairs", "orpo", "dpo", "compare"]


@pytest.mark.parametrize("other", ["start", "until"])
def test_one_stage_alone_cannot_be_a_part_of_a_range(project: Path, tmp_path: Path, other: str) -> None:
    with pytest.raises(RecipeError, match=r"--only reward: not together with --(from|until)\n→ --only runs one stage; --from A"):
        running(project / "recipe.yaml", tmp_path / "empty", only="reward", **{other: "rs"})


def test_two_names_for_one_result_make_it_once(project: Path, tmp_path: Path) -> None:
    recipe = project / "recipe.yaml"
    again = "  again:   {stage: pairs, scored: scored, scorer: rm, keep_truncated: true}\n  orpo:"
    recipe.write_text(recipe.read_text().replace("  orpo:", again))
    assert statuses(recipe, tmp_path / "empty")["again"] == ("run", "the same as pairs")


def test_a_part_that_lacks_what_it_needs_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(project / "recipe.yaml"), tmp_path / "empty", only="scored")
    assert str(caught.value) == (
        "scored needs sampled and reward, which have no result yet and are not among the chosen stages\n"
        "→ `--until scored` runs it after what it needs: sft, reward, sampled."
    )
    with pytest.raises(RecipeError, match="no such stage"):
        make_plan(load_recipe(project / "recipe.yaml"), tmp_path / "empty", only="scores")
