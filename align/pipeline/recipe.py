"""Recipes with the stages of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.config.recipe import Recipe, parse_recipe
from align.stages.registry import STAGES


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; see `align.config.recipe.parse_recipe`."""
    return parse_recipe(path, overrides=overrides, stage_types=STAGES)
