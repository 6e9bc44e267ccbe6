"""`align recipes`: the recipes that come with align."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from align.cli import complete
from align.cli.options import JsonOption, print_json
from align.config.schema_files import SCHEMA_LINE, add_schema
from align.config.shipped import RECIPE_NAME, SHIPPED_RECIPES, by_name, recipes_in
from align.errors import RecipeError
from align.system_errors import writing_to

app = typer.Typer(help="List, show and copy the recipes that come with align.", no_args_is_help=True, rich_markup_mode=None)

BORROWED = re.compile(r"(?<![\w./])\.\./(?P<path>[\w-]+/[\w./-]+)")
"""A path to another recipe's files: `../quickstart/data/prompts.jsonl`."""
NAME_LINE = re.compile(r"^name:[ \t]+[^\s#]+", re.MULTILINE)
FolderOption = Annotated[
    Path | None, typer.Option("--folder", metavar="DIR", help="Folder with recipes. Default: those that come with align.")
]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of a recipe, as `align recipes list` prints it.", autocompletion=complete.shipped_recipes
    ),
]


def _recipes(folder: Path | None) -> dict[str, Path]:
    found = recipes_in(folder or SHIPPED_RECIPES)
    if not found:
        raise RecipeError(f"{folder}: no recipes here", hint="Give the recipes folder of a checkout of align with --folder.")
    return found


def _find(name: str, folder: Path | None) -> Path:
    recipes = _recipes(folder)
    if (found := by_name(name, recipes)) is None:
        from align.config.names import unknown

        raise RecipeError(f"{name}: {unknown(name, list(recipes), what='recipe')}")
    return found


def _summary(folder: Path) -> str:
    """The first sentence of the recipe's README."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    rest = itertools.dropwhile(lambda line: not line.strip() or line.startswith(("#", "|", "`", "!", "<")), lines)
    paragraph = " ".join(line.strip() for line in itertools.takewhile(str.strip, rest))
    return re.split(r"(?<=[.?]) ", paragraph, maxsplit=1)[0]


@app.command("list")
def list_(folder: FolderOption = None, json: JsonOption = False) -> None:
    """List the recipes, each with its purpose."""
    rows: list[dict[str, Any]] = [
        {"name": name, "path": str(path / RECIPE_NAME), "summary": _summary(path)} for name, path in _recipes(folder).items()
    ]
    if json:
        print_json(rows)
        return
    width, wraps = max(len(row["name"]) for row in rows), sys.stdout.isatty()
    for row in rows:
        line = f"{row['name']:<{width}}  {row['summary']}".rstrip()
        print(textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent=" " * (width + 2)) if wraps else line)


@app.command()
def show(name: NameArgument, folder: FolderOption = None) -> None:
    """Print a recipe."""
    print((_find(name, folder) / RECIPE_NAME).read_text(encoding="utf-8"), end="")


@app.command()
def copy(
    name: NameArgument,
    target: Annotated[Path | None, typer.Argument(metavar="DIR", help="New folder. Default: the last part of NAME.")] = None,
    folder: FolderOption = None,
) -> None:
    """Copy a recipe with its data, to change it. The copy is called like its folder."""
    source = _find(name, folder)
    place = target or Path(source.name)
    if place.exists():
        raise RecipeError(f"{place}: exists already", hint="Name another folder: align recipes copy NAME DIR")
    with writing_to(place):
        _copy(source, place)
    print(place / RECIPE_NAME)
    print(f"Next: align plan {shlex.quote(str(place))}", file=sys.stderr)


def _copy(source: Path, place: Path) -> None:
    shutil.copytree(source, place)
    recipe = place / RECIPE_NAME
    # As text, not as YAML: comments and layout of the recipe stay.
    text = _with_schema_line(recipe.read_text(encoding="utf-8"), add_schema(place))
    # Two recipes of one name would share a folder of results.
    text = NAME_LINE.sub(f"name: {_name_for(place, source)}", text, count=1)
    recipe.write_text(BORROWED.sub(partial(_bring, source, place), text), encoding="utf-8")


def _with_schema_line(text: str, line: str) -> str:
    first, _, rest = text.partition("\n")
    return f"{line}\n{rest if first.startswith(SCHEMA_LINE) else text}"


def _name_for(place: Path, source: Path) -> str:
    """A recipe's name for the folder: its own name, as far as a recipe may be called so."""
    from align.config.recipe import FILE_NAME

    written = place.resolve().name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", written).strip("-._")[:100]
    if not FILE_NAME.fullmatch(name):
        name = f"my-{source.name}"
    if name != written:
        print(f"The recipe is called {name}: a name has letters from a to z, digits, '.', '_' and '-'.", file=sys.stderr)
    return name


def _bring(source: Path, place: Path, borrowed: re.Match[str]) -> str:
    """Copy a file that a recipe borrows from another recipe; returns its path in the copy."""
    original, copied = source / borrowed[0], place / borrowed["path"]
    # Something else that looks like a path, for example in a comment.
    if not original.exists():
        return borrowed[0]
    copied.parent.mkdir(parents=True, exist_ok=True)
    if original.is_dir():
        # A recipe may name the same folder twice, or a folder and a file in it.
        shutil.copytree(original, copied, dirs_exist_ok=True)
    else:
        shutil.copyfile(original, copied)
    return borrowed["path"]
