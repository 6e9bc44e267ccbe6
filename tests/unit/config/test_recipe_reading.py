"""What a recipe without mistakes becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from align.config.inputs import ArtifactInput, DataInput, ModelInput
from align.config.paths import locate
from align.config.recipe import Recipe, parse_recipe
from align.errors import RecipeError
from align.pipeline.recipe import load_recipe
from align.rows import ROW_KINDS
from align.stages.registry import STAGES


def read(folder: Path, **options: object) -> Recipe:
    return parse_recipe(folder, stage_types=STAGES, **options)  # type: ignore[arg-type]


def test_stages_come_after_what_they_need_and_otherwise_as_written(folder: Path) -> None:
    recipe = read(folder)
    assert list(recipe.stages) == ["sft", "sampled", "scored", "pairs", "dpo", "compare"]
    assert recipe.seed == 17
    assert recipe.kinds["pairs"] == "preferences"
    assert recipe.kinds["base"] == "model"


def test_references_of_a_stage_are_listed_with_their_fields(folder: Path) -> None:
    compare = read(folder).stages["compare"]
    assert compare.references == (
        (("models", 0), "sft"),
        (("models", 1), "dpo"),
        (("baseline",), "sft"),
        (("prompts",), "held_out"),
    )
    assert compare.type == "compare"


def test_a_folder_and_its_file_are_the_same_recipe(folder: Path) -> None:
    assert read(folder) == parse_recipe(folder / "recipe.yaml", stage_types=STAGES)
    assert read(folder) == load_recipe(folder)


def test_where_and_locate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe("recipe.yaml", stage_types=STAGES)
    assert recipe.where(("stages", "dpo", "beta")) == "recipe.yaml:8:53"
    assert recipe.where(("stages", "dpo", "num_epochs")) == "recipe.yaml:8:3"
    assert recipe.locate("base") == Path("base")
    monkeypatch.setenv("HOME", "/home/someone")
    assert recipe.locate("~/model") == Path("/home/someone/model")
    assert recipe.locate("/models/x") == Path("/models/x")


def test_a_way_back_out_of_the_folder_is_left_out_unless_it_leads_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "here" / "mine").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "here" / "mine")
    assert locate("../rows.jsonl", tmp_path / "here" / "mine") == tmp_path / "here" / "rows.jsonl"
    assert locate("../rows.jsonl", tmp_path / "linked") == tmp_path / "linked" / ".." / "rows.jsonl"
    assert locate("../nothing/rows.jsonl", tmp_path / "here") == tmp_path / "here" / ".." / "nothing" / "rows.jsonl"


def test_resolved_is_json_with_defaults_and_reads_as_the_same_recipe(folder: Path) -> None:
    recipe = read(folder)
    resolved = recipe.resolved()
    assert resolved["stages"]["dpo"]["stage"] == "dpo"
    assert resolved["stages"]["dpo"]["label_smoothing"] == 0.0
    (folder / "again.json").write_text(json.dumps(resolved))
    again = parse_recipe(folder / "again.json", stage_types=STAGES)
    assert again.resolved() == resolved
    assert again.stages == recipe.stages


def test_the_content_of_a_rule_file_is_part_of_the_recipe(folder: Path) -> None:
    scorers = read(folder).resolved()["stages"]["scored"]["scorers"]
    assert scorers["gold"]["rules"]["rules"][0]["max_words"] == 50
    # Without the key, a rule file may be the bare list.
    (folder / "gold.yaml").write_text("- {type: length, name: short, max_words: 50}\n")
    assert read(folder).resolved()["stages"]["scored"]["scorers"] == scorers


def test_kind_and_key_decide_what_reads_an_input(folder: Path) -> None:
    made = folder / "runs" / "sampled"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text(json.dumps({"kind": "candidates"}))
    (folder / "recipe.yaml").write_text(
        "name: x\ninputs:\n"
        "  a: {kind: model, hub_id: org/model, revision: main}\n"
        "  b: {kind: prompts, dataset: org/data, split: train}\n"
        "  c: {kind: candidates, artifact: runs/sampled}\n"
        "stages:\n  s: {stage: score, candidates: c, scorers: {g: {rules: gold.yaml}}}\n"
    )
    recipe = read(folder)
    assert [type(spec) for spec in recipe.inputs.values()] == [ModelInput, DataInput, ArtifactInput]
    assert recipe.kinds["c"] == "candidates"


def test_artifact_inputs_can_have_every_kind_of_artifact() -> None:
    for kind in ("model", "reward_model", *ROW_KINDS, "comparison"):
        assert ArtifactInput(kind=kind, artifact="runs/x").kind == kind
    with pytest.raises(ValidationError, match="expected one of model"):
        ArtifactInput(kind="adapter", artifact="runs/x")


def test_overrides_win_and_are_where_the_command_line_is(folder: Path) -> None:
    overrides = ["stages.dpo.beta=0.3", "seed=5", "stages.compare.models.1=sampled2", "stages.compare.models=[sft]"]
    recipe = read(folder, overrides=overrides)
    assert recipe.seed == 5
    assert recipe.resolved()["stages"]["dpo"]["beta"] == 0.3
    assert recipe.resolved()["stages"]["compare"]["models"] == ["sft"]
    assert recipe.where(("stages", "dpo", "beta")) == "--set stages.dpo.beta=0.3"


def test_an_override_may_add_a_whole_stage(folder: Path) -> None:
    recipe = read(folder, overrides=["stages.again={stage: sft, model: dpo, data: lessons}"])
    assert list(recipe.stages)[-1] == "again"


def test_a_folder_without_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"this folder has no recipe\.yaml"):
        read(tmp_path)
