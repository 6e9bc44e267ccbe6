"""Sweeps: what they are written out as, and that every mistake points at what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from align.config.recipe import Recipe
from align.config.trials import Choices, drawn, grid_size

SWEEP = """\
name: forms
inputs:
  base: {kind: model, path: base}
  lessons: {kind: instructions, path: lessons.jsonl}
  prompts: {kind: prompts, path: prompts.jsonl}
  validation: {kind: prompts, path: validation.jsonl}
  held_out: {kind: prompts, path: held_out.jsonl}
stages:
  sft: {stage: sft, model: base, data: lessons}
  sampled: {stage: generate, model: sft, prompts: prompts}
  scored: {stage: score, candidates: sampled, scorers: {rules: {rules: gold.yaml}}}
  pairs: {stage: pairs, scored: scored, scorer: rules}
  dpo: {stage: dpo, model: sft, pairs: pairs}
  after: {stage: sft, model: dpo, data: lessons}
  compare: {stage: compare, models: [sft, dpo], baseline: sft, prompts: held_out, scorers: {rules: {rules: gold.yaml}}}
sweep:
  dpo:
    fields: {dpo.beta: [0.3, 0.1], pairs.min_margin: [0.0, 1.0]}
    prompts: validation
    scorer: {rules: gold.yaml}
    max_completion_tokens: 8
"""
Forms = Callable[..., Recipe]
MistakesAfter = Callable[..., list[str]]
Stages = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def validation(folder: Any) -> None:
    (folder / "validation.jsonl").write_text("")


def stages_of(recipe: Recipe) -> Stages:
    stages: Stages = recipe.resolved()["stages"]
    return stages


def test_a_grid_shares_what_its_settings_do_not_reach(forms: Forms) -> None:
    stages = stages_of(forms(SWEEP))
    assert list(stages) == [
        *("sft", "sampled", "scored", "dpo-trial-1-pairs", "dpo-trial-1", "dpo-trial-2-pairs", "dpo-trial-2"),
        *("dpo-trial-3", "dpo-trial-4", "dpo", "after", "compare"),
    ]
    trials = [stages[f"dpo-trial-{number}"] for number in (1, 2, 3, 4)]
    assert [trial["beta"] for trial in trials] == [0.3, 0.3, 0.1, 0.1]
    # The pairs do not depend on beta: two trials have the same.
    pairs = ["dpo-trial-1-pairs", "dpo-trial-2-pairs"]
    assert [trial["pairs"] for trial in trials] == [*pairs, *pairs]
    assert [stages[name]["min_margin"] for name in pairs] == [0.0, 1.0]
    assert {stages[name]["scored"] for name in pairs} == {"scored"}


def test_the_choice_has_the_name_of_the_stage_and_its_trials_by_their_settings(forms: Forms) -> None:
    choice = stages_of(forms(SWEEP))["dpo"]
    assert (choice["stage"], choice["prompts"], choice["max_completion_tokens"]) == ("select_model", "validation", 8)
    assert choice["models"] == {
        "beta=0.1, pairs.min_margin=0.0": "dpo-trial-3",
        "beta=0.1, pairs.min_margin=1.0": "dpo-trial-4",
        "beta=0.3, pairs.min_margin=0.0": "dpo-trial-1",
        "beta=0.3, pairs.min_margin=1.0": "dpo-trial-2",
    }
    assert stages_of(forms(SWEEP))["after"]["model"] == "dpo"


def test_another_order_of_the_settings_changes_names_and_nothing_else(forms: Forms) -> None:
    turned = SWEEP.replace(
        "dpo.beta: [0.3, 0.1], pairs.min_margin: [0.0, 1.0]", "pairs.min_margin: [1.0, 0.0], dpo.beta: [0.1, 0.3]"
    )
    one, other = (forms(text) for text in (SWEEP, turned))
    settings = [[(stage["beta"], stages[stage["pairs"]]["min_margin"]) for stage in stages.values() if "beta" in stage]
                for stages in (stages_of(one), stages_of(other))]  # fmt: skip
    assert settings[0] != settings[1]
    assert sorted(settings[0]) == sorted(settings[1])
    assert [list(recipe.resolved()["stages"]["dpo"]["models"]) for recipe in (one, other)] == [
        list(stages_of(one)["dpo"]["models"])
    ] * 2


def test_fields_may_be_nested_and_set_on_the_command_line(forms: Forms) -> None:
    nested = SWEEP.replace("{dpo.beta: [0.3, 0.1], pairs.min_margin: [0.0, 1.0]}", "{dpo: {beta: [0.3, 0.1]}}")
    assert list(stages_of(forms(nested))["dpo"]["models"]) == ["beta=0.1", "beta=0.3"]
    # Without a copy, the pairs are those that were written.
    assert stages_of(forms(nested))["dpo-trial-1"]["pairs"] == "pairs"
    assert list(stages_of(forms(nested, "sweep.dpo.fields.dpo.beta=[0.2]"))["dpo"]["models"]) == ["beta=0.2"]
    found = stages_of(forms(SWEEP, "sweep.dpo.fields.dpo.beta=[0.2]", "sweep.dpo.trials=1"))["dpo"]["models"]
    assert len(found) == 1


def test_draws_follow_from_seed_field_and_number_alone(forms: Forms) -> None:
    text = SWEEP.replace(
        "dpo.beta: [0.3, 0.1]", "dpo.learning_rate: {log_uniform: [1e-5, 1e-3]}, dpo.num_epochs: {uniform: [1, 3]}"
    )
    text = text.replace("    prompts: validation", "    trials: 4\n    prompts: validation")
    few, many = (stages_of(forms(text, f"sweep.dpo.trials={trials}"))["dpo"]["models"] for trials in (4, 7))
    assert few.keys() < many.keys()
    stages = stages_of(forms(text))
    rates = [stages[f"dpo-trial-{number}"]["learning_rate"] for number in (1, 2, 3, 4)]
    assert all(1e-5 <= rate <= 1e-3 and rate == float(f"{rate:.3g}") for rate in rates)
    assert {stages[f"dpo-trial-{number}"]["num_epochs"] for number in (1, 2, 3, 4)} <= {1, 2, 3}
    assert stages_of(forms(text, "seed=4"))["dpo"]["models"].keys() != few.keys()
    assert stages_of(forms(text, "seed=4", "sweep.dpo.seed=17"))["dpo"]["models"].keys() == few.keys()


def test_a_value_that_is_added_moves_only_the_trials_that_draw_it() -> None:
    before = [Choices(["a", "b", "c"]).draw(1, "x.y", number) for number in range(60)]
    after = [Choices(["d", "c", "a", "b"]).draw(1, "x.y", number) for number in range(60)]
    assert {*before} == {"a", "b", "c"}
    assert all(now in (was, "d") for was, now in zip(before, after, strict=True))
    assert 5 <= after.count("d") <= 25


def test_ranges_reach_their_ends_and_narrow_ones_have_few_values() -> None:
    whole = Choices(kind="uniform", low=1, high=3, whole=True)
    counts = [[whole.draw(1, "f", number) for number in range(300)].count(value) for value in (1, 2, 3)]
    assert all(70 <= count <= 130 for count in counts)
    assert grid_size({"f": whole, "g": Choices(["a", "b"])}) == 6
    narrow = Choices(kind="uniform", low=0.1, high=0.1004)
    assert grid_size({"f": narrow}) is None
    assert drawn({"f": narrow}, 5, seed=1) == [{"f": 0.1}]


def test_seeds_sweep_for_every_seed(forms: Forms) -> None:
    stages = stages_of(
        forms(
            SWEEP.replace(
                "dpo: {stage: dpo, model: sft, pairs: pairs}", "dpo: {stage: dpo, model: sft, pairs: pairs, seeds: [1, 2]}"
            )
        )
    )
    assert [stages[f"dpo-s{seed}"]["models"]["beta=0.1, pairs.min_margin=1.0"] for seed in (1, 2)] == [
        f"dpo-trial-4-s{seed}" for seed in (1, 2)
    ]
    assert [(stages[f"dpo-s{seed}"]["seed"], stages[f"dpo-trial-4-s{seed}"]["seed"]) for seed in (1, 2)] == [(1, 1), (2, 2)]
    assert stages["compare"]["models"] == ["sft", "dpo-s1", "dpo-s2"]
    assert stages["compare"]["methods"] == {"dpo": ["dpo-s1", "dpo-s2"]}
    assert stages["dpo-trial-4-s2"]["pairs"] == "dpo-trial-2-pairs"


def test_rounds_can_be_swept(forms: Forms) -> None:
    rounds = (
        "iterated: {rounds: 2, model: sft, generate: {prompts: prompts}, score: {scorers: {rules: {rules: gold.yaml}}},\n"
        "    pairs: {scorer: rules}, dpo: {beta: 0.2}}\n  after: {stage: sft, model: iterated"
    )
    text = SWEEP.replace("after: {stage: sft, model: dpo", rounds).replace("  dpo:\n    fields", "  iterated:\n    fields")
    stages = stages_of(
        forms(text.replace("{dpo.beta: [0.3, 0.1], pairs.min_margin: [0.0, 1.0]}", "{iterated.dpo.beta: [0.3, 0.1]}"))
    )
    assert stages["iterated"]["models"] == {"dpo.beta=0.1": "iterated-trial-2-2", "dpo.beta=0.3": "iterated-trial-1-2"}
    assert stages["after"]["model"] == "iterated"
    assert stages["iterated-trial-2-2"]["beta"] == 0.1


FIELDS = "{dpo.beta: [0.3, 0.1], pairs.min_margin: [0.0, 1.0]}"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (FIELDS, "{dpo.bata: [1]}", "recipe.yaml:18:14: sweep.dpo.fields.dpo.bata: unknown key; did you mean 'beta'?"),
        (FIELDS, "{dpo.beta: [0.1, high]}", "yaml:18:30: sweep.dpo.fields.dpo.beta.1: expected a number, got the text 'high'"),
        (FIELDS, "{dpo.beta: 0.1}", "dpo.beta: expected a list of values, or {log_uniform: [LOW, HIGH]}, got the number 0.1"),
        (FIELDS, "{dpo.beta: {}}", "dpo.beta: expected a list of values, or {log_uniform: [LOW, HIGH]}, got a mapping"),
        (FIELDS, "{dpo.beta: [0.1, 0.1]}", "fields.dpo.beta.1: 0.1 is here twice"),
        (FIELDS, "{beta: [0.1]}", "fields.beta: expected STAGE.FIELD; did you mean 'dpo.beta'?"),
        (FIELDS, "{dop.beta: [0.1]}", "dop.beta: expected STAGE.FIELD with a stage of this recipe; did you mean 'dpo.beta'?"),
        (FIELDS, "{after.num_epochs: [1, 2]}", "'dpo' does not need 'after', so this changes nothing of it; fields of"),
        (FIELDS, "{dpo.seed: [1, 2]}", "fields.dpo.seed: this is a seed, which is no setting: give the stage seeds"),
        (FIELDS, "{dpo.checkpoint_minutes: [1, 2]}", "this says how the work is done and changes no result"),
        (FIELDS, "{dpo.beta: {log_uniform: [0.1, 0.2]}}", "a range has no end of values; write trials beside fields"),
        (FIELDS, "{dpo.beta: {log_uniform: [0.2, 0.1]}}", "expected two numbers, the lower first, got [0.2, 0.1]"),
        (FIELDS, "{dpo.beta: [0.1], dpo: {beta: [0.2]}}", "'dpo.beta' is here twice"),
        ("    prompts: validation", "    trials: 5\n    prompts: validation", "trials: there are only 4 different trials, got 5"),
        ("    prompts: validation", "    prompt: validation", "sweep.dpo.prompt: unknown key; did you mean 'prompts'?"),
        ("    prompts: validation", "    prompts: held_out", "dpo.prompts: 'held_out' are the held-out prompts of 'compare'"),
        ("path: validation.jsonl", "path: ./held_out.jsonl", "'validation' is the same file as 'held_out', the held-out prompts"),
        ("sweep:\n  dpo:", "sweep:\n  dop:", "recipe.yaml:17:3: sweep.dop: unknown stage; did you mean 'dpo'?"),
        ("sweep:\n  dpo:", "sweep:\n  pairs:", "'pairs' makes preferences; only a stage that makes a model can be swept"),
        ("models: [sft, dpo]", "models: [sft, dpo-trial-2]", "models.1: 'dpo-trial-2' is a trial; only the chosen one, 'dpo'"),
        ("model: sft, pairs: pairs}", "model: sft, pairs: pairs, bata: 1}", "recipe.yaml:13:47: stages.dpo.bata: unknown key"),
    ],
)  # fmt: skip
def test_mistakes_name_the_line(mistakes_after: MistakesAfter, before: str, after: str, expected: str) -> None:
    found = mistakes_after(SWEEP, before, after)
    assert expected in "\n".join(found)
    # One mistake is one line, or one line below a heading.
    assert len(found) <= 2


def test_a_scorer_that_only_the_comparison_uses_does_not_choose(mistakes_after: MistakesAfter) -> None:
    several = "prompts: held_out, scorers: {rules: {rules: gold.yaml}, gold: {rules: [{type: numeric_answer, name: n}]}}}"
    alone = "prompts: held_out, scorers: {rules: {rules: gold.yaml}}}"
    gold = "scorer: {rules: [{type: numeric_answer, name: n}]}"
    found = mistakes_after(SWEEP, alone, several, "scorer: {rules: gold.yaml}", gold)
    assert "this is the scorer 'gold' of 'compare', which no other stage uses" in "\n".join(found)
    assert mistakes_after(SWEEP, alone, several) == []


def test_a_sweep_within_a_sweep_is_refused(mistakes_after: MistakesAfter) -> None:
    more = "sweep:\n  sft: {fields: {sft.num_epochs: [1, 2]}, prompts: validation, scorer: {rules: gold.yaml}}\n"
    found = mistakes_after(SWEEP, "sweep:\n", more, "pairs.min_margin: [0.0, 1.0]", "sft.learning_rate: [1e-4, 1e-3]")
    assert "sweep.dpo: every trial would need a sweep of 'sft' of its own" in "\n".join(found)
    # One after the other is two sweeps.
    assert mistakes_after(SWEEP, "sweep:\n", more) == []
