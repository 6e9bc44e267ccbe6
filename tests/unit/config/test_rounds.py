"""Rounds: what they are written out as, and that every mistake points at what was written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.config.recipe import Recipe, parse_document
from align.config.source import Position, parse_text
from align.errors import RecipeError
from align.stages.registry import STAGES

ROUNDS = """\
name: forms
inputs:
  base: {kind: model, path: base}
  lessons: {kind: instructions, path: lessons.jsonl}
  prompts: {kind: prompts, path: prompts.jsonl}
  held_out: {kind: prompts, path: held_out.jsonl}
stages:
  sft: {stage: sft, model: base, data: lessons}
  iterated:
    rounds: 2
    model: sft
    generate: {prompts: prompts, num_candidates: 4}
    score: {scorers: {gold: {rules: gold.yaml}}}
    pairs: {scorer: gold, min_margin: 0.5}
    dpo: {beta: 0.2}
  compare:
    stage: compare
    models: [sft, iterated]
    baseline: sft
    prompts: held_out
    scorers: {gold: {rules: gold.yaml}}
"""
Forms = Callable[..., Recipe]
MistakesAfter = Callable[..., list[str]]
Stages = dict[str, dict[str, Any]]


def stages_of(recipe: Recipe) -> Stages:
    stages: Stages = recipe.resolved()["stages"]
    return stages


def test_every_round_starts_from_the_model_of_the_one_before(forms: Forms) -> None:
    recipe = forms(ROUNDS)
    assert list(recipe.stages) == [
        "sft",
        *("iterated-1-generate", "iterated-1-score", "iterated-1-pairs", "iterated-1"),
        *("iterated-2-generate", "iterated-2-score", "iterated-2-pairs", "iterated-2"),
        "compare",
    ]
    links = {name: dict(node.references) for name, node in recipe.stages.items()}
    assert links["iterated-1-generate"] == {("model",): "sft", ("prompts",): "prompts"}
    assert links["iterated-1"] == {("model",): "sft", ("pairs",): "iterated-1-pairs"}
    assert links["iterated-2-generate"] == {("model",): "iterated-1", ("prompts",): "prompts"}
    assert links["iterated-2-score"] == {("candidates",): "iterated-2-generate"}
    assert links["iterated-2-pairs"] == {("scored",): "iterated-2-score"}
    assert links["iterated-2"] == {("model",): "iterated-1", ("pairs",): "iterated-2-pairs"}


def test_fields_go_to_every_round(forms: Forms) -> None:
    stages = stages_of(forms(ROUNDS))
    for number in (1, 2):
        assert stages[f"iterated-{number}-generate"]["num_candidates"] == 4
        assert stages[f"iterated-{number}-pairs"]["min_margin"] == 0.5
        assert stages[f"iterated-{number}"]["beta"] == 0.2
        assert stages[f"iterated-{number}-score"]["scorers"]["gold"]["rules"]["rules"][0]["max_words"] == 50


def test_it_is_the_same_as_stages_written_by_hand(forms: Forms) -> None:
    by_hand = ROUNDS[: ROUNDS.index("  iterated:")] + (
        "  iterated-1-generate: {stage: generate, model: sft, prompts: prompts, num_candidates: 4}\n"
        "  iterated-1-score: {stage: score, candidates: iterated-1-generate, scorers: {gold: {rules: gold.yaml}}}\n"
        "  iterated-1-pairs: {stage: pairs, scored: iterated-1-score, scorer: gold, min_margin: 0.5}\n"
        "  iterated-1: {stage: dpo, model: sft, pairs: iterated-1-pairs, beta: 0.2}\n"
    )
    expected = forms(by_hand).stages
    found = forms(ROUNDS.replace("rounds: 2", "rounds: 1")).stages
    assert {name: found[name] for name in expected} == expected


def test_in_a_list_the_name_is_every_round_and_elsewhere_the_last(forms: Forms) -> None:
    text = ROUNDS + "  after: {stage: sft, model: iterated, data: lessons}\n"
    stages = stages_of(forms(text))
    assert stages["compare"]["models"] == ["sft", "iterated-1", "iterated-2"]
    assert stages["after"]["model"] == "iterated-2"
    stages = stages_of(forms(text.replace("baseline: sft", "baseline: iterated-1")))
    assert stages["compare"]["baseline"] == "iterated-1"


def test_prompts_of_each_round(forms: Forms) -> None:
    stages = stages_of(forms(ROUNDS.replace("prompts: prompts,", "prompts: [prompts, held_out],")))
    assert [stages[f"iterated-{number}-generate"]["prompts"] for number in (1, 2)] == ["prompts", "held_out"]


def test_overrides_are_of_what_was_written(forms: Forms) -> None:
    recipe = forms(ROUNDS, "stages.iterated.rounds=3", "stages.iterated.dpo.beta=0.4")
    stages = stages_of(recipe)
    assert [name for name in stages if stages[name]["stage"] == "dpo"] == ["iterated-1", "iterated-2", "iterated-3"]
    assert {stages[f"iterated-{number}"]["beta"] for number in (1, 2, 3)} == {0.4}
    assert recipe.where(("stages", "iterated-3", "beta")) == "--set stages.iterated.dpo.beta=0.4"
    assert recipe.where(("stages", "iterated-2-generate", "num_candidates")) == "recipe.yaml:12:50"


def test_a_seed_is_that_of_every_stage_but_those_with_their_own(forms: Forms) -> None:
    stages = stages_of(forms(ROUNDS.replace("rounds: 2", "rounds: 1\n    seed: 3").replace("beta: 0.2", "seed: 4")))
    assert [stages[name]["seed"] for name in ("iterated-1-generate", "iterated-1-score", "iterated-1")] == [3, 3, 4]
    assert stages["sft"]["seed"] is None


def test_the_reference_can_be_the_first_model(forms: Forms) -> None:
    stages = stages_of(forms(ROUNDS.replace("rounds: 2", "rounds: 2\n    reference: first")))
    assert [stages[f"iterated-{number}"]["reference"] for number in (1, 2)] == [None, "sft"]
    assert stages_of(forms(ROUNDS))["iterated-2"]["reference"] is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("beta: 0.2", "betta: 0.2", "15:11: stages.iterated.dpo.betta: unknown key; did you mean 'beta'?"),
        ("beta: 0.2", "beta: 0", "15:17: stages.iterated.dpo.beta: must be more than 0, got 0"),
        (
            "num_candidates: 4",
            "zzz: 4",
            "12:34: stages.iterated.generate.zzz: unknown key; valid: seed, engine, dtype, "
            "shard_prompts, num_workers, temperature, top_p, top_k, max_completion_tokens, max_prompt_tokens, "
            "num_candidates, on_invalid, prompts",
        ),
        (
            "    dpo: {beta: 0.2}\n",
            "",
            "9:3: stages.iterated.dpo: this key is missing; expected a mapping",
        ),
        ("dpo: {beta: 0.2}", "dpo: 3", "15:10: stages.iterated.dpo: expected a mapping, got the number 3"),
        ("rounds: 2", "rounds: 0", "10:13: stages.iterated.rounds: must be at least 1, got 0"),
        ("rounds: 2", "rounds: two", "10:13: stages.iterated.rounds: expected a whole number, got the text 'two'"),
        ("    rounds: 2\n", "", "9:3: stages.iterated.rounds: this key is missing; expected a whole number"),
        ("rounds: 2", "ronds: 2", "10:5: stages.iterated.ronds: unknown key; did you mean 'rounds'?"),
        ("rounds: 2", "rounds: 2\n    ronds: 1", "11:5: stages.iterated.ronds: unknown key; did you mean 'rounds'?"),
        (
            "rounds: 2",
            "rounds: 2\n    reference: frist",
            "11:16: stages.iterated.reference: expected one of previous, first, got the text 'frist'; did you mean 'first'?",
        ),
        (
            "model: sft\n",
            "model: prompts\n",
            "11:12: stages.iterated.model: wants a model, but 'prompts' holds prompts; "
            "name 'base', 'sft', 'iterated-1', 'iterated-2', 'iterated'",
        ),
        (
            "model: sft\n",
            "model: sfft\n",
            "11:12: stages.iterated.model: no input or stage is called 'sfft'; did you mean 'sft'?",
        ),
        ("    model: sft\n", "", "9:3: stages.iterated.model: this key is missing; expected the name of a model"),
        (
            "scorer: gold",
            "scorer: glod",
            "14:21: stages.iterated.pairs.scorer: 'glod': unknown scorer; did you mean 'gold'? (of the stage 'iterated-1-score')",
        ),
        (
            "pairs: {scorer: gold, ",
            "pairs: {",
            "14:5: stages.iterated.pairs.scorer: this key is missing; expected a text (or scorers, each with its weight)",
        ),
        (
            "prompts: prompts,",
            "prompts: promts,",
            "12:25: stages.iterated.generate.prompts: no input or stage is called 'promts'; did you mean 'prompts'?",
        ),
        (
            "prompts: prompts,",
            "prompts: [prompts],",
            "12:25: stages.iterated.generate.prompts: expected one name, or a list of 2 (one per round), got 1",
        ),
        (
            "prompts: prompts,",
            "prompts: [prompts, sft],",
            "12:35: stages.iterated.generate.prompts.1: wants prompts, but 'sft' makes a model; name 'prompts', 'held_out'",
        ),
        ("beta: 0.2", "pairs: other", "15:11: stages.iterated.dpo.pairs: rounds fill this in; remove it"),
        (
            "beta: 0.2",
            "reference: sft",
            "15:11: stages.iterated.dpo.reference: rounds fill this in; remove it; write reference: first or "
            "previous beside rounds",
        ),
        (
            "scorers: {gold: {rules: gold.yaml}}}\n    pairs",
            "scorers: {gold: {rules: old.yaml}}}\n    pairs",
            "13:37: stages.iterated.score.scorers.gold.rules: old.yaml: there is no such file; did you mean 'gold.yaml'?",
        ),
        (
            "[sft, iterated]",
            "[sft, iteratd]",
            "18:19: stages.compare.models.1: no input or stage is called 'iteratd'; did you mean 'iterated'?",
        ),
        ("[sft, iterated]", "[sft, iterated, iterated-2]", "18:29: stages.compare.models.2: 'iterated-2' is here twice"),
        (
            "model: sft\n",
            "model: iterated\n",
            "11:12: stages.iterated.model: these stages need each other in a circle: iterated-1 → iterated-2 → iterated-1",
        ),
        (
            "  sft: {stage: sft,",
            "  iterated-1: {stage: sft, model: base, data: lessons}\n  sft: {stage: sft,",
            "10:3: stages.iterated: this makes a stage called 'iterated-1', and that name is in use; rename one",
        ),
        (
            "prompts: held_out\n",
            "prompts: iterated\n",
            "20:14: stages.compare.prompts: wants prompts, but 'iterated-2' makes a model; name 'prompts', 'held_out'",
        ),
    ],
)
def test_mistakes(mistakes_after: MistakesAfter, before: str, after: str, expected: str) -> None:
    (found,) = mistakes_after(ROUNDS, before, after)
    assert found.removeprefix("recipe.yaml:") == expected


def test_mistakes_in_it_and_elsewhere_come_together(mistakes_after: MistakesAfter) -> None:
    found = mistakes_after(ROUNDS, "data: lessons", "dta: lessons", "rounds: 2", "rounds: none", "beta: 0.2", "beta: x")
    assert [line.split(": ")[1] for line in found[1:]] == [
        "stages.sft.dta",
        "stages.iterated.rounds",
        "stages.iterated.dpo.beta",
    ]


def test_mistakes_of_overrides(mistakes_after: MistakesAfter) -> None:
    override = "stages.iterated.dpo.betta=0.3"
    assert mistakes_after(ROUNDS, overrides=[override]) == [
        f"--set {override}: stages.iterated.dpo.betta: unknown key; did you mean 'beta'?"
    ]
    override = "stages.iterated-1.beta=0.3"
    assert mistakes_after(ROUNDS, overrides=[override]) == [
        f"--set {override}: stages.iterated-1: unknown name; did you mean 'iterated'?"
    ]


def test_a_name_that_grows_too_long(mistakes_after: MistakesAfter) -> None:
    name = "i" * 60
    (found,) = mistakes_after(ROUNDS, "  iterated:", f"  {name}:", "[sft, iterated]", "[sft]", "rounds: 2", "rounds: 1")
    assert found == f"recipe.yaml:9:3: stages.{name}: the stages that this makes have names longer than 64; shorten it"


def test_rounds_with_seeds(forms: Forms) -> None:
    text = ROUNDS.replace("rounds: 2", "rounds: 2\n    seeds: [5, 6]").replace("models: [sft, iterated]", "models: [sft]")
    stages = stages_of(forms(text))
    assert stages["iterated-s6-2-generate"]["model"] == "iterated-s6-1"
    assert {fields["seed"] for name, fields in stages.items() if name.startswith("iterated-s6")} == {6}
    assert len([name for name in stages if name.startswith("iterated-s5")]) == 8
    text = ROUNDS.replace("data: lessons}", "data: lessons, seeds: [5, 6]}").replace("[sft, iterated]", "[base]")
    stages = stages_of(forms(text.replace("baseline: sft", "baseline: base")))
    assert stages["iterated-s6-1"]["model"] == "sft-s6"


def test_every_round_with_seeds_is_a_method(forms: Forms) -> None:
    compare = stages_of(forms(ROUNDS.replace("rounds: 2", "rounds: 2\n    seeds: [5, 6]")))["compare"]
    assert compare["models"] == ["sft", "iterated-s5-1", "iterated-s6-1", "iterated-s5-2", "iterated-s6-2"]
    assert compare["methods"] == {
        "iterated-1": ["iterated-s5-1", "iterated-s6-1"],
        "iterated-2": ["iterated-s5-2", "iterated-s6-2"],
    }


def test_the_resolved_recipe_reads_as_the_same(forms: Forms) -> None:
    recipe = forms(ROUNDS.replace("rounds: 2", "rounds: 2\n    seeds: [5, 6]"))
    again = forms(json.dumps(recipe.resolved()))
    assert again.resolved() == recipe.resolved()
    assert again.stages == recipe.stages


JUNK: tuple[Any, ...] = (None, True, -1, 0.5, "", "iterated", [], [[]], {}, {"stage": 3}, ["iterated", 2], {"rounds": 2})


@pytest.mark.slow
@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_whatever_is_written_anywhere_gives_mistakes_and_no_crash(folder: Path, junk: object) -> None:
    """Every value of the form replaced by every kind of value, one at a time."""
    for path in list(parse_text(ROUNDS, label="x").values):
        if path[:1] != ("stages",) or len(path) < 2:
            continue
        document = parse_text(ROUNDS.replace("rounds: 2", "rounds: 2\n    seeds: [5, 6]"), label="x")
        document.put(path, junk, Position(0, 1, 1, "x"))
        with contextlib.suppress(RecipeError):  # and nothing else
            parse_document(document, path=folder / "x", folder=folder, stage_types=STAGES)
