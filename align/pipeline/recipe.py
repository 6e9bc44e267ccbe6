"""Recipes with the stages of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config.recipe import Recipe, parse_recipe
from align.stages.registry import STAGES


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; see `align.config.recipe.parse_recipe`.

    Args:
        overrides: values that win over the file, as `{"stages.dpo.dpo.beta": 0.2}` or `["stages.dpo.dpo.beta=0.2"]`.
    Raises:
        RecipeError: with every mistake in the recipe, and where it is.
    """
    if isinstance(overrides, Mapping):
        # JSON is YAML, in which the values of overrides are read.
        overrides = [f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in overrides.items()]
    return parse_recipe(path, overrides=[overrides] if isinstance(overrides, str) else overrides, stage_types=STAGES)
