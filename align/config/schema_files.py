"""The JSON Schemas that come with align, and the copy beside a recipe, which an editor reads."""

from __future__ import annotations

from pathlib import Path

SHIPPED_SCHEMAS = Path(__file__).parents[1] / "data_schemas"
"""In a checkout it is a link to the folder beside the package; a wheel has the files themselves."""
SCHEMA_SUFFIX = ".schema.json"
RECIPE_SCHEMA = f"recipe{SCHEMA_SUFFIX}"
# In a folder whose name begins with a dot: an input that is a folder or a glob must not read it as data.
SCHEMA_BESIDE_RECIPE = Path(".align") / RECIPE_SCHEMA
SCHEMA_LINE = "# yaml-language-server: $schema="


def add_schema(folder: Path) -> str:
    """Write the schema of this version of align into a recipe's folder, over an older one.

    Returns:
        The first line of the recipe, without a line break, with which an editor finds the schema.
    Raises:
        OSError: if it cannot be written.
    """
    target = folder / SCHEMA_BESIDE_RECIPE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((SHIPPED_SCHEMAS / RECIPE_SCHEMA).read_bytes())
    return f"{SCHEMA_LINE}{SCHEMA_BESIDE_RECIPE.as_posix()}"
