"""Paths and names that are too long for any: found by fuzzing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.config.recipe import parse_recipe
from align.errors import RecipeError
from align.stages.registry import STAGES


@pytest.mark.parametrize("kind", ["model", "instructions"])
@pytest.mark.parametrize("path", ["a" * 400, "a\0b"], ids=["long", "null"])
def test_a_path_that_no_file_can_have_is_reported_as_absent(tmp_path: Path, kind: str, path: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"inputs": {"x": {"kind": kind, "path": path}}, "stages": {}}))
    with pytest.raises(RecipeError, match=r"inputs\.x\.path: there is no such"):
        parse_recipe(recipe, stage_types=STAGES)


def test_a_name_that_is_too_long_for_any_is_not_compared_letter_by_letter(tmp_path: Path) -> None:
    """That took six seconds for a text of 70,000 characters."""
    recipe, long = tmp_path / "recipe.yaml", "x" * 900_000
    recipe.write_text(json.dumps({"inputs": {"a": {"kind": "model", "path": "."}}, "stages": {"sft": {"stage": long}}}))
    with pytest.raises(RecipeError, match=r"stages\.sft\.stage: 'x{59}…': unknown stage type; valid: ") as caught:
        parse_recipe(recipe, stage_types=STAGES)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["\0", "a" * 400], ids=["null", "long"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    stages = {"s": {"stage": "score", "candidates": "c", "scorers": {"a": {"rules": name}}}}
    recipe.write_text(json.dumps({"inputs": {"c": {"kind": "prompts", "path": "recipe.yaml"}}, "stages": stages}))
    with pytest.raises(RecipeError, match="no file can have this name"):
        parse_recipe(recipe, stage_types=STAGES)


def test_a_sweep_of_what_is_no_stage_is_reported_at_the_stage(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    content = {
        "inputs": {"a": {"kind": "model", "path": "."}},
        "stages": {"dpo": ["sft"]},
        "sweep": {"dpo": {"fields": "compare"}},
    }
    recipe.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"stages\.dpo: expected a mapping, got a list"):
        parse_recipe(recipe, stage_types=STAGES)


@pytest.mark.parametrize("path", ["a\0b", "loop.jsonl"])
def test_prompts_of_a_choice_whose_path_leads_nowhere(tmp_path: Path, path: str) -> None:
    """They are compared with the held-out prompts."""
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a"}\n')
    recipe = tmp_path / "recipe.yaml"
    scorer = {"length": {"rules": [{"type": "length", "name": "short", "max_characters": 12}]}}
    stages = {
        "best": {"stage": "select_model", "models": ["m"], "prompts": "chosen_by", "scorer": scorer["length"]},
        "compare": {"stage": "compare", "models": ["m", "best"], "prompts": "held_out", "scorers": scorer},
    }
    inputs = {
        "m": {"kind": "model", "path": "."},
        "chosen_by": {"kind": "prompts", "path": path},
        "held_out": {"kind": "prompts", "path": "held_out.jsonl"},
    }
    recipe.write_text(json.dumps({"inputs": inputs, "stages": stages}))
    with pytest.raises(RecipeError, match=r"inputs\.chosen_by\.path: there is no such file"):
        parse_recipe(recipe, stage_types=STAGES)
