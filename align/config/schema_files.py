"""The JSON Schemas that come with align, and the copies beside a recipe, which an editor reads."""

from __future__ import annotations

from pathlib import Path

SHIPPED_SCHEMAS = Path(__file__).parents[1] / "data_schemas"
"""In a checkout it is a link to the folder beside the package; a wheel has the files themselves."""
SCHEMA_SUFFIX = ".schema.json"
RECIPE_SCHEMA = f"recipe{SCHEMA_SUFFIX}"
MACHINE_SCHEMA = f"machine{SCHEMA_SUFFIX}"
# Its name begins with a dot: an input that is a folder or a glob must not read it as data.
FOLDER_OF_SCHEMAS = Path(".align")
SCHEMA_LINE = "# yaml-language-server: $schema="


def add_schema(folder: Path, name: str = RECIPE_SCHEMA) -> str:
    """Write a schema of this version of align into a recipe's folder, over an older one.

    Args:
        name: of the schema's file.
    Returns:
        The first line of the recipe, or of the machine file, without a line break, with which an editor finds the schema.
    Raises:
        OSError: if it cannot be written.
    """
    target = folder / FOLDER_OF_SCHEMAS / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((SHIPPED_SCHEMAS / name).read_bytes())
    return f"{SCHEMA_LINE}{(FOLDER_OF_SCHEMAS / name).as_posix()}"
