"""`align init` with models that a stage made, and with models that score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from init_place import Init

from align.config.inputs import ArtifactInput
from align.pipeline.recipe import load_recipe

REWARD_MODEL = {"architectures": ["LlamaForSequenceClassification"]}


def make_result(name: str, kind: str = "model", **configuration: object) -> str:
    """A folder as `runs/NAME/stages/STAGE` is: the model in a folder of its own, beside a manifest."""
    folder = Path("runs", "first", "stages", name)
    shutil.copytree("model", folder / "model")
    (folder / "manifest.json").write_text(json.dumps({"kind": kind}))
    config = folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | configuration))
    return str(folder)


def test_what_a_stage_made_is_named_as_an_artifact(init: Init) -> None:
    """Its folder has no config.json: as a `path` it would be refused."""
    judge = make_result("reward_model", "reward_model", **REWARD_MODEL)
    options = ["--data", "pairs.jsonl", "--goal", "compare", "--judge-model", judge]
    answer = init("deep/mine", *options, model=make_result("sft"))
    assert answer.code == 0, answer.err
    inputs = load_recipe("deep/mine").inputs
    for name, kind, stage in (("base", "model", "sft"), ("judge", "reward_model", "reward_model")):
        made = inputs[name]
        assert isinstance(made, ArtifactInput)
        assert (made.kind, Path("deep", "mine", made.artifact).resolve()) == (kind, Path("runs/first/stages", stage).resolve())


def test_a_result_without_a_chat_template_gets_one(init: Init) -> None:
    made = make_result("sft")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (Path(made) / "model" / name).unlink(missing_ok=True)
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "dpo", model=made)
    assert answer.code == 0, answer.err
    base = load_recipe("mine").inputs["base"]
    assert (base.path, base.chat.template) == ("../runs/first/stages/sft/model", "chatml")  # type: ignore[union-attr]


@pytest.mark.parametrize("option", ["--reward-model", "--judge-model"])
def test_a_language_model_gives_no_scores(option: str, init: Init) -> None:
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "compare", "--method", "rejection_sampling", option, "model")
    assert (answer.code, Path("mine").exists()) == (2, False)
    assert f"{option} model: a language model, which gives no scores; expected a reward model" in answer.err
