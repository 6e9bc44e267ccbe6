"""`align schema`: the JSON Schemas that come with align."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from align.cli import complete
from align.config.schema_files import MACHINE_SCHEMA, RECIPE_SCHEMA, SCHEMA_SUFFIX, SHIPPED_SCHEMAS, add_schema
from align.errors import RecipeError
from align.system_errors import writing_to

NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="recipe, machine, events, results, manifest, or a kind of rows. Default: list all.",
        autocompletion=complete.schemas,
    ),
]
WriteOption = Annotated[
    Path | None,
    typer.Option(
        "--write",
        metavar="PLACE",
        help="Write it to this file; or, that of recipes or machine files, into a recipe's folder, where an editor finds it.",
    ),
]
WITH_LINE = {RECIPE_SCHEMA: "recipe", MACHINE_SCHEMA: "machine file"}
"""Schemas that an editor finds by the first line of a file, and what that file is."""
PathOption = Annotated[bool, typer.Option("--path", help="Print the path of the file in this installation.")]


def schema(name: NameArgument = None, write: WriteOption = None, path: PathOption = False) -> None:
    """Print the JSON Schema of recipes, machine files or rows.

    After an upgrade, `align schema recipe --write FOLDER` brings the editor's copy beside a recipe up to date.
    """
    names = sorted(file.name.removesuffix(SCHEMA_SUFFIX) for file in SHIPPED_SCHEMAS.glob(f"*{SCHEMA_SUFFIX}"))
    if name is None:
        if write is not None or path:
            raise RecipeError("a schema's name is missing", hint="For example: align schema recipe --path")
        print("\n".join(names))
        return
    if name not in names:
        from align.config.names import unknown

        raise RecipeError(f"{name}: {unknown(name, names, what='schema')}")
    file = SHIPPED_SCHEMAS / f"{name}{SCHEMA_SUFFIX}"
    if write is not None:
        _write(file, write)
    elif path:
        print(file)
    else:
        print(file.read_text(encoding="utf-8"), end="")


def _write(file: Path, place: Path) -> None:
    with writing_to(place):
        if not place.is_dir():
            place.write_bytes(file.read_bytes())
            print(place)
        elif file.name in WITH_LINE:
            print(f"The first line of a {WITH_LINE[file.name]} in {place}:\n{add_schema(place, file.name)}")
        else:
            raise RecipeError(f"{place}: this is a folder", hint=f"Give a file: --write {place / file.name}")
