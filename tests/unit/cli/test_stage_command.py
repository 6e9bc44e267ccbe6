"""`align stage NAME`: from options to the recipe of one stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.chat import ChatSettings
from align.config.inputs import ArtifactInput, DataInput, ModelInput
from align.config.sections import RulesScorer


def test_options_become_a_recipe_of_one_stage(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align(
        "stage", "sft", "--model", "base", "--data", "lessons.jsonl", "--out", "made/mine", "--seed", "5", "--num-epochs", "2",
        "--learning-rate", "1e-5", "--no-packing", "--on-invalid", "drop", "--columns", "prompt=Q", "--columns", "completion=A=B",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    recipe = pipeline.recipe
    assert (recipe.name, recipe.seed, pipeline.out) == ("mine", 5, Path("made"))
    assert pipeline.options["store"] == Path("made/mine/.store")
    assert recipe.inputs == {
        "model": ModelInput(kind="model", path="base"),
        "data": DataInput(
            kind="instructions", path="lessons.jsonl", columns={"prompt": "Q", "completion": "A=B"}, on_invalid="drop"
        ),
    }
    config = recipe.stages["sft"].config
    assert (config.num_epochs, config.learning_rate, config.packing, config.on_invalid) == (2, 1e-5, False, "drop")


def test_chat_settings_are_written_as_in_a_recipe_and_go_to_every_language_model(align: Any, pipeline: Any, folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "judge").mkdir()
    chat = "{template: plain, template_kwargs: {on: false}}"
    options = ["--models", "base", "--models", "other", "--baseline", "base", "--prompts", "lessons.jsonl"]
    answer = align("stage", "compare", *options, "--scorers", "rm=judge", "--chat", chat, "--out", "c")
    assert answer.code == 0, answer.err
    wanted = ChatSettings(template="plain", template_kwargs={"on": False})
    inputs = pipeline.recipe.inputs
    assert (inputs["base"].chat, inputs["other"].chat, inputs["rm"].chat) == (wanted, wanted, None)


def test_a_model_that_align_trained_keeps_its_settings(align: Any, pipeline: Any, folder: Path) -> None:
    (folder / "trained").mkdir()
    (folder / "trained" / "manifest.json").write_text(json.dumps({"kind": "model"}))
    answer = align("stage", "sft", "--model", "trained", "--data", "lessons.jsonl", "--chat", "{template: plain}", "--out", "o")
    assert (answer.code, "--chat {template: plain}: no model here takes it" in answer.err) == (2, True)


def test_lists_and_scorers_take_names(align: Any, pipeline: Any, folder: Path) -> None:
    (folder / "tuned").mkdir()
    (folder / "judge").mkdir()
    (folder / "gold.yaml").write_text("- {type: length, name: short, max_words: 5}\n")
    answer = align(
        "stage", "compare", "--models", "sft=tuned", "--models", "base", "--baseline", "sft", "--prompts", "lessons.jsonl",
        "--scorers", "rm=judge", "--scorers", "gold=gold.yaml", "--out", "cmp",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    config = pipeline.recipe.stages["compare"].config
    assert config.models == ["sft", "base"]
    assert config.baseline == "sft"
    assert config.scorers["rm"] == "rm"
    assert isinstance(config.scorers["gold"], RulesScorer)
    assert pipeline.recipe.kinds["rm"] == "reward_model"


def test_a_single_reference_may_be_the_path_of_a_listed_one(align: Any, pipeline: Any, folder: Path) -> None:
    (folder / "gold.yaml").write_text("- {type: length, name: short, max_words: 5}\n")
    answer = align(
        "stage", "compare", "--models", "m=base", "--baseline", "base", "--prompts", "lessons.jsonl",
        "--scorers", "gold=gold.yaml", "--out", "cmp",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert pipeline.recipe.stages["compare"].config.baseline == "m"


def test_results_of_align_are_known_by_their_manifest(align: Any, pipeline: Any, folder: Path) -> None:
    for name, kind in (("scored", "scored_candidates"), ("model", "model")):
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(json.dumps({"kind": kind}))
    assert align("stage", "pairs", "--scored", "scored", "--scorer", "5", "--out", "p").code == 0
    assert pipeline.recipe.inputs["scored"] == ArtifactInput(kind="scored_candidates", artifact="scored")
    assert pipeline.recipe.stages["pairs"].config.scorer == "5"
    answer = align("stage", "pairs", "--scored", "model", "--scorer", "rm", "--out", "p")
    assert answer.code == 2
    assert "--scored model: wants scored candidates, but 'scored' holds a model" in answer.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--num-epochs", "1.5"], "--num-epochs 1.5: expected a whole number, got the number 1.5"),
        (["--learning-rate", "0"], "--learning-rate 0: must be more than 0, got 0"),
        (["--precision", "float61"], "--precision float61: expected one of auto, float32, bfloat16"),
        (["--model", "bas"], "--model bas: there is no such folder: bas; did you mean 'base'?"),
        (
            ["--chat", "{thinking: never}"],
            "--chat {thinking: never}: thinking: expected one of refuse, strip, keep",
        ),
        (["--out", "made/a b"], "--out made/a b: name: expected letters, digits, '.', '_' and '-'"),
        (["--seed", "-1"], "--seed -1: seed: must be from 0"),
        (["--columns", "prompt"], "--columns prompt: expected FIELD=COLUMN"),
        (
            ["--columns", "chosen=C"],
            "--columns chosen=C: no data file here has that field; fields: completion, id, input, instruction, messages",
        ),
    ],
)
def test_mistakes_are_located_at_the_option(align: Any, pipeline: Any, folder: Path, options: list[str], problem: str) -> None:
    given = {"--model": "base", "--data": "lessons.jsonl", "--out": "x", options[0]: options[1]}
    answer = align("stage", "sft", *[part for pair in given.items() for part in pair])
    assert answer.code == 2
    assert answer.err.startswith(f"error: {problem}")
    assert pipeline.recipe is None


def test_names_given_twice_are_refused(align: Any, pipeline: Any, folder: Path) -> None:
    (folder / "other").mkdir()
    answer = align(
        "stage", "compare", "--models", "m=base", "--models", "m=other", "--baseline", "m", "--prompts", "lessons.jsonl",
        "--scorers", "m", "--out", "x",
    )  # fmt: skip
    assert answer.code == 2
    assert "'m' is given twice, with different paths" in answer.err


def test_help_has_every_field_with_its_docstring_and_default(align: Any) -> None:
    text = " ".join(align("stage", "dpo", "--help").out.split())
    default = "Default of sigmoid_norm: 5, of sppo_hard: 0.001. [default: 0.1]"
    assert f"--beta NUMBER Strength of the pull towards the reference. {default}" in text
    assert "--model FOLDER Model to start from. [required]" in text
    assert "--pairs FILE" in text
    assert "--on-invalid error|drop" in text
    assert text.index("--pairs") < text.index("--beta")


def test_an_unknown_stage_has_a_suggestion(align: Any) -> None:
    answer = align("stage", "dop")
    assert answer.code == 2
    assert "Did you mean 'dpo'" in answer.err
