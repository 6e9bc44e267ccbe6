"""Paths that are too long for any file: found by fuzzing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.config.recipe import parse_recipe
from align.errors import RecipeError
from align.stages.registry import STAGES


@pytest.mark.parametrize("kind", ["model", "instructions"])
def test_a_path_that_is_too_long_for_any_file_is_reported_as_absent(tmp_path: Path, kind: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"inputs": {"x": {"kind": kind, "path": "a" * 400}}, "stages": {}}))
    with pytest.raises(RecipeError, match=r"inputs\.x\.path: there is no such"):
        parse_recipe(recipe, stage_types=STAGES)
