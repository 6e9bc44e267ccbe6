"""Copies for several seeds: what they are written out as, and that every mistake points at what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from align.config.recipe import Recipe

SEEDS = """\
name: forms
inputs:
  base: {kind: model, path: base}
  lessons: {kind: instructions, path: lessons.jsonl}
  prompts: {kind: prompts, path: prompts.jsonl}
  held_out: {kind: prompts, path: held_out.jsonl}
stages:
  sft: {stage: sft, model: base, data: lessons}
  rs: {stage: sft, model: sft, data: lessons, seeds: [5, 6]}
  more: {stage: sft, model: rs, data: lessons}
  compare: {stage: compare, models: [sft, rs, more], baseline: sft, prompts: held_out, scorers: {gold: {rules: gold.yaml}}}
"""
Forms = Callable[..., Recipe]
MistakesAfter = Callable[..., list[str]]
Stages = dict[str, dict[str, Any]]


def stages_of(recipe: Recipe) -> Stages:
    stages: Stages = recipe.resolved()["stages"]
    return stages


def test_a_copy_per_seed_of_the_stage_and_of_what_needs_it(forms: Forms) -> None:
    stages = stages_of(forms(SEEDS.replace("models: [sft, rs, more]", "models: [sft]")))
    assert list(stages) == ["sft", "rs-s5", "rs-s6", "more-s5", "more-s6", "compare"]
    assert [(stages[name]["model"], stages[name]["seed"]) for name in ("rs-s5", "rs-s6")] == [("sft", 5), ("sft", 6)]
    assert [(stages[name]["model"], stages[name]["seed"]) for name in ("more-s5", "more-s6")] == [("rs-s5", 5), ("rs-s6", 6)]


def test_a_comparison_takes_all_and_shows_them_as_one_method(forms: Forms) -> None:
    compare = stages_of(forms(SEEDS))["compare"]
    assert compare["models"] == ["sft", "rs-s5", "rs-s6", "more-s5", "more-s6"]
    assert compare["methods"] == {"rs": ["rs-s5", "rs-s6"], "more": ["more-s5", "more-s6"]}


def test_methods_that_are_written_stay(forms: Forms) -> None:
    written = "models: [sft, rs, more], methods: {mine: [rs], more: [more-s5]}"
    compare = stages_of(forms(SEEDS.replace("models: [sft, rs, more]", written)))["compare"]
    assert compare["methods"] == {"mine": ["rs-s5", "rs-s6"], "more": ["more-s5"]}


def test_equal_lists_meet_and_a_written_seed_stays(forms: Forms) -> None:
    text = SEEDS.replace("models: [sft, rs, more]", "models: [sft]")
    text = text.replace("model: rs, data: lessons", "model: rs, data: best, seed: 1")
    text += (
        "  sampled: {stage: generate, model: sft, prompts: prompts, seeds: [5, 6]}\n"
        "  scored: {stage: score, candidates: sampled, scorers: {gold: {rules: gold.yaml}}}\n"
        "  best: {stage: best_of_n, scored: scored, scorer: gold}\n"
    )
    stages = stages_of(forms(text))
    assert [(stages[name]["model"], stages[name]["data"]) for name in ("more-s5", "more-s6")] == [
        ("rs-s5", "best-s5"),
        ("rs-s6", "best-s6"),
    ]
    assert (stages["best-s6"]["seed"], stages["more-s6"]["seed"]) == (6, 1)


def test_one_copy_can_be_named(forms: Forms) -> None:
    text = SEEDS.replace("models: [sft, rs, more], baseline: sft", "models: [sft, rs-s5], baseline: rs-s5")
    text = text.replace("model: rs,", "model: rs-s6,")
    stages = stages_of(forms(text))
    assert (stages["more"]["model"], stages["more"]["seed"]) == ("rs-s6", None)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "seeds: [5, 6]",
            "seeds: 5",
            "9:54: stages.rs.seeds: expected a list, each entry a whole number, got the number 5 (write [1, 2, 3, 4, 5])",
        ),
        ("seeds: [5, 6]", "seeds: []", "9:54: stages.rs.seeds: must not be empty"),
        ("seeds: [5, 6]", "seeds: [5, -6]", "9:58: stages.rs.seeds.1: must be at least 0, got -6"),
        ("seeds: [5, 6]", "seeds: [5, 4294967296]", "9:58: stages.rs.seeds.1: must be less than 4294967296, got 4294967296"),
        ("seeds: [5, 6]", "seeds: [5, 5]", "9:58: stages.rs.seeds.1: 5 is here twice"),
        ("seeds: [5, 6]", "seeds: [5, 6], seed: 3", "9:68: stages.rs.seed: give either seed or seeds"),
        ("seeds: [5, 6]", "seds: [5, 6]", "9:47: stages.rs.seds: unknown key; did you mean 'seeds'?"),
        ("seeds: [5, 6]", "seed: -1", "9:53: stages.rs.seed: must be at least 0, got -1"),
        (
            "baseline: sft",
            "baseline: rs",
            "11:54: stages.compare.baseline: 'rs' has a copy per seed; name one of rs-s5, rs-s6",
        ),
        (
            "model: rs, data: lessons",
            "model: rs, data: lessons, seeds: [5, 7]",
            "10:29: stages.more.model: 'rs' has copies for the seeds 5, 6, but this stage for 5, 7; they must be the same",
        ),
        (
            "stage: compare,",
            "stage: compare, seeds: [1],",
            "11:36: stages.compare.seeds: a comparison is not copied; give seeds to the stages before it",
        ),
        (
            "model: rs, data: lessons",
            "model: rs, data: lesson",
            "10:39: stages.more.data: no input or stage is called 'lesson'; did you mean 'lessons'?",
        ),
        (
            "  sft: {",
            "  rs-s6: {stage: sft, model: base, data: lessons}\n  sft: {",
            "10:3: stages.rs: this makes a stage called 'rs-s6', and that name is in use; rename one",
        ),
    ],
)
def test_mistakes_of_seeds(mistakes_after: MistakesAfter, before: str, after: str, expected: str) -> None:
    assert mistakes_after(SEEDS.replace("[sft, rs, more]", "[sft]"), before, after) == [f"recipe.yaml:{expected}"]


def test_an_invalid_seed_is_no_seed_and_everything_else_is_still_checked(mistakes_after: MistakesAfter) -> None:
    found = mistakes_after(SEEDS, "seeds: [5, 6]", "seeds: [x]", "model: rs, data: lessons", "model: rs, dta: lessons")
    assert [line.partition(": ")[2] for line in found[1:]] == [
        "stages.rs.seeds.0: expected a whole number, got the text 'x'",
        "stages.more.dta: unknown key; did you mean 'data'?",
    ]
