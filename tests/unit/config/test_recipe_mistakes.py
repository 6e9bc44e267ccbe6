"""Every class of mistake: the exact words, line and column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align.config.names import listing
from align.config.recipe import parse_recipe
from align.errors import MAX_ERROR_LINES, RecipeError
from align.stages.registry import STAGES

Problems = Callable[..., list[str]]

ONE_MISTAKE = [
    # evaluation prompts
    (
        "path: lessons.jsonl",
        "path: lessons.jsonl, decontaminate: [held_ot]",
        "recipe.yaml:4:70: inputs.lessons.decontaminate.0: unknown input; did you mean 'held_out'?",
    ),
    (
        "path: lessons.jsonl",
        "path: lessons.jsonl, decontaminate: [base]",
        "recipe.yaml:4:70: inputs.lessons.decontaminate.0: 'base' holds a model; expected an input of the kind prompts",
    ),
    (
        "path: prompts.jsonl",
        "path: prompts.jsonl, decontaminate: [prompts]",
        "recipe.yaml:5:65: inputs.prompts.decontaminate.0: an input cannot be compared with itself",
    ),
    # unknown keys
    ("beta: 0.1", "betta: 0.1", "recipe.yaml:8:47: stages.dpo.betta: unknown key; did you mean 'beta'?"),
    (
        "beta: 0.1",
        "zzz: 1",
        "recipe.yaml:8:47: stages.dpo.zzz: unknown key; valid: stage, seeds, seed, peft, optimizer, gradient_checkpointing, "
        "save_dtype, learning_rate, lr_scheduler, warmup_ratio, weight_decay, max_grad_norm, num_epochs, batch_size, "
        "micro_batch_size, precision, checkpoint_minutes, checkpoint_steps, max_tokens, on_invalid, model, held_out_share, "
        "pairs, reference, variant, beta, label_smoothing, nll_weight, ld_alpha",
    ),
    ("name: small", "name: small\nsed: 3", "recipe.yaml:2:1: sed: unknown key; did you mean 'seed'?"),
    # wrong types
    (
        "beta: 0.1",
        "beta: '1e-5'",
        "recipe.yaml:8:53: stages.dpo.beta: expected a number, got the text '1e-5' (remove the quotes)",
    ),
    ("beta: 0.1", "beta: big", "recipe.yaml:8:53: stages.dpo.beta: expected a number, got the text 'big'"),
    ("beta: 0.1", "beta: null", "recipe.yaml:8:53: stages.dpo.beta: expected a number, got nothing (null)"),
    ("beta: 0.1", "beta: true", "recipe.yaml:8:53: stages.dpo.beta: expected a number, got true"),
    ("beta: 0.1", "beta: [0.1]", "recipe.yaml:8:53: stages.dpo.beta: expected a number, got a list"),
    ("num_epochs: 3", "num_epochs: 3.5", "recipe.yaml:9:61: stages.sft.num_epochs: expected a whole number, got the number 3.5"),
    (
        "num_epochs: 3",
        "packing: yes",
        "recipe.yaml:9:58: stages.sft.packing: expected true or false, got the text 'yes' (write true)",
    ),
    (
        "model: base",
        "model: 3",
        "recipe.yaml:9:28: stages.sft.model: expected the name of a model, got the number 3 (put quotes around it)",
    ),
    (
        "models: [sft, dpo]",
        "models: sft",
        "recipe.yaml:15:13: stages.compare.models: expected a list, each entry the name of a model, "
        "got the text 'sft' (write [sft])",
    ),
    (
        "num_epochs: 3",
        "precision: bfloat61",
        "recipe.yaml:9:60: stages.sft.precision: expected one of auto, float32, bfloat16, "
        "got the text 'bfloat61'; did you mean 'bfloat16'?",
    ),
    ("name: small", "name: 2024", "recipe.yaml:1:7: name: expected a text, got the number 2024 (put quotes around it)"),
    (
        "name: small",
        "name: a/b",
        "recipe.yaml:1:7: name: expected letters, digits, '.', '_' and '-', at most 100, got the text 'a/b'",
    ),
    ("name: small\n", "", "recipe.yaml:1:1: name: this key is missing; expected a text that can be a file name"),
    ("name: small", "name: small\nseed: -1", "recipe.yaml:2:7: seed: must be from 0 to 4294967295, got -1"),
    ("name: small", "name: small\nseed: true", "recipe.yaml:2:7: seed: expected a whole number, got true"),
    # bounds
    ("beta: 0.1", "beta: 0", "recipe.yaml:8:53: stages.dpo.beta: must be more than 0, got 0"),
    ("beta: 0.1", "beta: .inf", "recipe.yaml:8:53: stages.dpo.beta: must be a finite number, got inf"),
    ("beta: 0.1", "label_smoothing: 0.5", "recipe.yaml:8:64: stages.dpo.label_smoothing: must be less than 0.5, got 0.5"),
    ("num_epochs: 3", "num_epochs: 0", "recipe.yaml:9:61: stages.sft.num_epochs: must be at least 1, got 0"),
    (
        "models: [sft, dpo]\n    baseline: sft",
        "models: []\n    baseline: sft",
        "recipe.yaml:15:13: stages.compare.models: must not be empty",
    ),
    # missing keys
    ("pairs: pairs, ", "", "recipe.yaml:8:3: stages.dpo.pairs: this key is missing; expected the name of preferences"),
    (
        "stage: dpo, ",
        "",
        f"recipe.yaml:8:3: stages.dpo.stage: this key is missing; expected one of {listing(STAGES)} (add stage: dpo)",
    ),
    (
        "kind: model, ",
        "",
        "recipe.yaml:3:3: inputs.base.kind: this key is missing; expected one of model, reward_model, instructions, "
        "preferences, labelled, prompts, text, candidates, scored_candidates, …",
    ),
    # inputs
    ("path: base", "path: bas", "recipe.yaml:3:29: inputs.base.path: there is no such folder: bas; did you mean 'base'?"),
    ("path: base", "path: gold.yaml", "recipe.yaml:3:29: inputs.base.path: gold.yaml is a file; a model is read from a folder"),
    (
        "path: lessons.jsonl",
        "path: base",
        "recipe.yaml:4:39: inputs.lessons.path: base is an empty folder; instructions are read from data files",
    ),
    ("path: base", "path: ''", "recipe.yaml:3:29: inputs.base.path: must not be empty"),
    (
        "path: base",
        "hub_id: a/b",
        "recipe.yaml:3:9: inputs.base: hub_id and revision go together (revision: main, a tag or a commit)",
    ),
    ("kind: model", "kind: modle", "recipe.yaml:3:16: inputs.base.kind: 'modle': unknown kind; did you mean 'model'?"),
    (
        "{kind: model, path: base}",
        "base",
        "recipe.yaml:3:9: inputs.base: expected a mapping, got the text 'base' (write {kind: …, path: base})",
    ),
    (
        "kind: model, path",
        "kind: model, artifact",
        "recipe.yaml:3:33: inputs.base.artifact: base has no manifest.json, so it is not a finished result of align",
    ),
    # names
    (
        "  dpo: {",
        "  sft2: {stage: sft, model: base, data: lessons}\n  base: {stage: sft, model: sft, data: lessons}\n  dpo: {",
        "recipe.yaml:9:3: stages.base: an input has this name too; names are used once",
    ),
    (
        "  pairs: {stage",
        "  sft 2: {stage: sft, model: base, data: lessons}\n  pairs: {stage",
        "recipe.yaml:12:3: stages.sft 2: a name starts with a letter and has only letters, digits, '_' and '-', at most 64",
    ),
    # references
    (
        "stage: generate",
        "stage: generat",
        "recipe.yaml:10:20: stages.sampled.stage: 'generat': unknown stage type; did you mean 'generate'?",
    ),
    (
        "pairs: pairs",
        "pairs: pars",
        "recipe.yaml:8:40: stages.dpo.pairs: no input or stage is called 'pars'; did you mean 'pairs'?",
    ),
    (
        "prompts: held_out",
        "prompts: xyz",
        "recipe.yaml:17:14: stages.compare.prompts: no input or stage is called 'xyz'; of this kind there is: prompts, held_out",
    ),
    (
        "pairs: pairs",
        "pairs: scored",
        "recipe.yaml:8:40: stages.dpo.pairs: wants preferences, but 'scored' makes scored candidates; "
        "put a pairs stage between them, or name 'pairs'",
    ),
    (
        "pairs: pairs",
        "pairs: sampled",
        "recipe.yaml:8:40: stages.dpo.pairs: wants preferences, but 'sampled' makes candidates; "
        "put a score and a pairs stage between them, or name 'pairs'",
    ),
    (
        "model: base, data",
        "model: prompts, data",
        "recipe.yaml:9:28: stages.sft.model: wants a model, but 'prompts' holds prompts; name 'base', 'dpo'",
    ),
    ("model: base, data", "model: sft, data", "recipe.yaml:9:28: stages.sft.model: a stage cannot use its own result"),
    (
        "model: base, data",
        "model: dpo, data",
        "recipe.yaml:8:28: stages.dpo.model: these stages need each other in a circle: dpo → sft → dpo",
    ),
    # fields that must agree
    (
        "baseline: sft",
        "baseline: base",
        "recipe.yaml:16:15: stages.compare.baseline: 'base' is not one of the models that are compared (sft, dpo)",
    ),
    ("models: [sft, dpo]", "models: [sft, dpo, sft]", "recipe.yaml:15:24: stages.compare.models.2: 'sft' is here twice"),
    (
        "scorer: gold",
        "scorer: glod",
        "recipe.yaml:12:49: stages.pairs.scorer: 'glod': unknown scorer; did you mean 'gold'? (of the stage 'scored')",
    ),
    (
        "num_epochs: 3",
        "batch_size: 8, micro_batch_size: 3",
        "recipe.yaml:9:82: stages.sft.micro_batch_size: batch_size (8) must be a multiple of micro_batch_size (3)",
    ),
    (
        "num_epochs: 3",
        "micro_batch_size: 5",
        "recipe.yaml:9:67: stages.sft.micro_batch_size: batch_size (32) must be a multiple of micro_batch_size (5)",
    ),
    (
        "scorer: gold}",
        "scorer: gold, rso_beta: 1.0}",
        "recipe.yaml:12:55: stages.pairs.rso_beta: goes with policy: rso only; here the policy is max_min",
    ),
    # scorers
    (
        "scorers: {gold: {rules: gold.yaml}}}",
        "scorers: {gold: 3}}",
        "recipe.yaml:11:63: stages.scored.scorers.gold: "
        "expected the name of a reward model, or {rules: …}, or {ensemble: …}, or {judge: …}, "
        "got the number 3 (put quotes around it)",
    ),
    (
        "scorers: {gold: {rules: gold.yaml}}}",
        "scorers: {gold: {ruls: gold.yaml}}}",
        "recipe.yaml:11:64: stages.scored.scorers.gold.ruls: unknown key; did you mean 'rules'?",
    ),
    (
        "rules: gold.yaml}}}",
        "rules: old.yaml}}}",
        "recipe.yaml:11:71: stages.scored.scorers.gold.rules: old.yaml: there is no such file; did you mean 'gold.yaml'?",
    ),
    (
        "rules: gold.yaml}}}",
        "rules: [{type: lenght}]}}}",
        "recipe.yaml:11:79: stages.scored.scorers.gold.rules.0.type: unknown type; did you mean 'length'?",
    ),
    (
        "rules: gold.yaml}}}",
        "rules: [{type: matches, name: a, any_of: ['(']}]}}}",
        "recipe.yaml:11:106: "
        "stages.scored.scorers.gold.rules.0.any_of.0: '(' is not a regular expression: missing ) at position 1",
    ),
    (
        "rules: gold.yaml}}}",
        "rules: 3}}}",
        "recipe.yaml:11:71: stages.scored.scorers.gold.rules: "
        "expected a list of rules, or the path of a YAML file that holds one, got the number 3",
    ),
]


@pytest.mark.parametrize(("before", "after", "expected"), ONE_MISTAKE, ids=[case[1].strip()[:40] for case in ONE_MISTAKE])
def test_one_mistake(problems: Problems, before: str, after: str, expected: str) -> None:
    assert problems(before, after) == [expected]


def test_no_mistake(problems: Problems) -> None:
    assert problems() == []


def test_all_mistakes_at_once_in_the_order_of_the_file(problems: Problems, folder: Path) -> None:
    (folder / "gold.yaml").write_text("rules:\n  - {type: length, name: short, max_word: 50}\n")
    found = problems("beta: 0.1", "betta: 0.1, num_epochs: none", overrides=["stages.sft.num_epochs=0"])
    assert found == [
        "5 problems in recipe.yaml:",
        "recipe.yaml:8:47: stages.dpo.betta: unknown key; did you mean 'beta'?",
        "recipe.yaml:8:71: stages.dpo.num_epochs: expected a whole number, got the text 'none' "
        "(leave the key out for the default)",
        "gold.yaml:2:33: stages.scored.scorers.gold.rules.rules.0.max_word: unknown key; did you mean 'max_words'?",
        "gold.yaml:2:33: stages.compare.scorers.gold.rules.rules.0.max_word: unknown key; did you mean 'max_words'?",
        "--set stages.sft.num_epochs=0: stages.sft.num_epochs: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.dpo.betta=1", "stages.dpo.betta: unknown key; did you mean 'beta'?"),
        ("stages.dppo.beta=1", "stages.dppo: unknown name; did you mean 'dpo'?"),
        ("stage.dpo.beta=1", "stage.dpo.beta: unknown key; did you mean 'stages.dpo.beta'?"),
        ("stages.dpo.beta=abc", "stages.dpo.beta: expected a number, got the text 'abc'"),
        ("dpo.beta=1", "dpo.beta: unknown key; did you mean 'stages.dpo.beta'?"),
        ("sft.lr=1", "sft.lr: unknown key; did you mean 'stages.sft.learning_rate'?"),
        ("max_prompt_length=9", "max_prompt_length: unknown key; did you mean 'stages.sampled.max_prompt_tokens' or "),
        ("models.base.path=x", "models.base.path: unknown key; did you mean 'inputs.base.path'?"),
        ("stages.dpo.beta.x=1", "stages.dpo.beta: this is a value (0.1); it has no key 'x'"),
        ("stages.compare.models.2=dpo", "stages.compare.models: '2' is not an index of this list of 2 (the first is 0)"),
        (
            "stages.compare.prompts=sft",
            "stages.compare.prompts: wants prompts, but 'sft' makes a model; name 'prompts', 'held_out'",
        ),
        ("stages.dpo.beta", "expected KEY=VALUE"),
        ("stages..beta=1", "expected KEY=VALUE"),
        ("seed=[1", "this [ is not closed"),
    ],
)
def test_mistakes_on_the_command_line(problems: Problems, override: str, expected: str) -> None:
    assert problems(overrides=[override])[0].startswith(f"--set {override}: {expected}")


def test_an_override_can_mend_the_file(problems: Problems) -> None:
    assert problems("beta: 0.1", "beta: 0", overrides=["stages.dpo.beta=0.1"]) == []


def test_every_circle_is_named_once(folder: Path) -> None:
    stage = "{{stage: sft, model: {}, data: lessons}}"
    needs = {"a": "b", "b": "c", "c": "a", "d": "e", "e": "d", "f": "a"}
    lines = [f"  {name}: {stage.format(need)}" for name, need in needs.items()]
    text = "name: x\ninputs:\n  lessons: {kind: instructions, path: lessons.jsonl}\nstages:\n" + "\n".join(lines)
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        parse_recipe("recipe.yaml", stage_types=STAGES)
    assert [line.rpartition(": ")[2] for line in str(caught.value).splitlines()[1:]] == ["a → b → c → a", "d → e → d"]


def test_an_artifact_of_another_kind(problems: Problems, folder: Path) -> None:
    (folder / "base" / "manifest.json").write_text(json.dumps({"kind": "reward_model"}))
    assert problems("kind: model, path", "kind: model, artifact") == [
        "recipe.yaml:3:16: inputs.base.kind: expected 'reward_model', which is what base holds, got 'model'"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe.yaml:1:1: the file is empty"),
        ("- a\n", "recipe.yaml:1:1: expected a mapping, got a list"),
        ("name: x\n", "recipe.yaml:1:1: stages: at least one stage is needed"),
        ("name: x\nstages: {}\n", "recipe.yaml:2:1: stages: at least one stage is needed"),
        ("name: x\nstages: [a]\n", "recipe.yaml:2:9: stages: expected a mapping of names to stages, got a list"),
        ("name: x\nstages: {a: }\n", "recipe.yaml:2:10: stages.a: expected a mapping, got nothing (null)"),
    ],
)
def test_documents_that_are_no_recipe(folder: Path, text: str, expected: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        parse_recipe("recipe.yaml", stage_types=STAGES)
    assert str(caught.value).startswith(expected)


def test_what_is_wrong_in_one_place_is_not_said_in_others(problems: Problems) -> None:
    # `sampled` is of an unknown type, and `scored` uses it: one line, not two.
    assert len(problems("stage: generate", "stage: gen")) == 1
    assert len(problems("{stage: generate, model: sft, prompts: prompts}", "3")) == 1


def test_an_error_is_short_however_many_mistakes(problems: Problems, folder: Path) -> None:
    keys = ", ".join(f"key{index}: 1" for index in range(40))
    problems("beta: 0.1", keys)
    with pytest.raises(RecipeError) as caught:
        parse_recipe("recipe.yaml", stage_types=STAGES)
    assert len(caught.value.render().splitlines()) == MAX_ERROR_LINES
    assert "… and 27 more" in caught.value.render()


def test_no_words_of_the_validator_reach_the_user(problems: Problems) -> None:
    everything = "\n".join(line for before, after, _ in ONE_MISTAKE for line in problems(before, after))
    for jargon in ("pydantic", "http", "Input", "input_value", "validat", "type=", "NoneType", "dict", "union"):
        assert jargon not in everything
