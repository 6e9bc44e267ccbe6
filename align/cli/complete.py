"""What a shell proposes when a user presses Tab. A mistake in a recipe gives no proposals, and nothing slow is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from align.config.schema_files import RECIPE_SCHEMA, SCHEMA_SUFFIX, SHIPPED_SCHEMAS
from align.config.shipped import RECIPE_NAME, SHIPPED_RECIPES, recipe_file, recipes_in
from align.errors import AlignError

STAGE_PREFIX = "stage_"


def shipped_recipes(incomplete: str) -> list[str]:
    """Names of the recipes that come with align."""
    return [name for name in recipes_in(SHIPPED_RECIPES) if name.startswith(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Folders and YAML files that a path may go on with, and the recipes that come with align."""
    folder, _, start = incomplete.rpartition("/")
    beside = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser().glob(f"{start}*"))
    prefix = f"{folder}/" if "/" in incomplete else ""
    found = [f"{prefix}{path.name}" + ("" if _is_recipe(path) else "/") for path in beside if _may_lead_to_one(path)]
    return [*found, *shipped_recipes(incomplete)]


def _is_recipe(path: Path) -> bool:
    return path.is_file() or (path / RECIPE_NAME).is_file()


def _may_lead_to_one(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or path.suffix in (".yaml", ".yml"))


def stages_of_recipe(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the stages of the recipe on the command line."""
    from align.config.source import read_document

    # An option that still lacks its value ends the parsing before arguments get their names.
    recipe = context.params.get("recipe") or next(iter(context.args), None)
    try:
        stages = read_document(recipe_file(recipe)).value["stages"] if recipe else {}
        if any("rounds" in entry or "seeds" in entry for entry in stages.values()):
            stages = _written_out(stages)
    except (AlignError, OSError, AttributeError, KeyError, TypeError):
        return []
    return [name for name in stages if name.startswith(incomplete)]


def _written_out(stages: dict[str, Any]) -> dict[str, Any]:
    """The stages that `rounds` and `seeds` stand for; the imports take some tenths of a second."""
    from align.config.expand import expand
    from align.stages.registry import STAGES

    return expand(stages, (), STAGES).stages


def stage_types(incomplete: str) -> list[tuple[str, str]]:
    """Stage types with what they do, from the schema of recipes: the stages themselves would be slow to import."""
    definitions = json.loads((SHIPPED_SCHEMAS / RECIPE_SCHEMA).read_bytes())["$defs"]
    stages = {key.removeprefix(STAGE_PREFIX): value for key, value in definitions.items() if key.startswith(STAGE_PREFIX)}
    return [(name, str(value["description"]).splitlines()[0]) for name, value in stages.items() if name.startswith(incomplete)]


def schemas(incomplete: str) -> list[str]:
    """Names of the schemas that come with align."""
    return sorted(path.name.removesuffix(SCHEMA_SUFFIX) for path in SHIPPED_SCHEMAS.glob(f"{incomplete}*{SCHEMA_SUFFIX}"))


def kinds(incomplete: str) -> list[str]:
    """Kinds of rows that a user's file may hold."""
    from align.rows import data_kinds

    return [name for name in data_kinds() if name.startswith(incomplete)]
