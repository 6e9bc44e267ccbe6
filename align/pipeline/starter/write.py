"""Writes a first recipe into a new folder."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from align import templates
from align.config.recipe import FILE_NAME
from align.config.schema_files import add_schema
from align.config.shipped import RECIPE_NAME
from align.config.source import parse_text
from align.errors import RecipeError
from align.pipeline.estimate.machine import Machine
from align.pipeline.recipe import load_recipe
from align.pipeline.starter.choices import GOALS
from align.pipeline.starter.goal import Wanted
from align.pipeline.starter.layout import HELD_OUT_NAME, Part, lay_out
from align.pipeline.starter.settings import Choice, fill_in
from align.system_errors import writing_to

TEMPLATE_NAME = "recipe.yaml.jinja"
MAX_COLUMNS = 80
"""A remark that would make its line longer stands above it."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    recipe: Path
    held_out: Path | None
    choice: Choice
    unused: tuple[str, ...]
    """Data files that the goal does not need."""
    judge: str
    """What judges a comparison; see `Layout`."""


def refuse_folder(folder: Path) -> None:
    """Refuse a folder that a recipe cannot be written to.

    Raises:
        RecipeError: if it has a recipe, or is a file.
    """
    for taken in (folder / RECIPE_NAME, folder / HELD_OUT_NAME):
        if taken.exists():
            raise RecipeError(
                f"{taken}: exists already, and nothing is overwritten", hint="Name another folder: align init FOLDER"
            )
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder}: is a file", hint="Name a folder: align init FOLDER")


def recipe_name(wanted: str | None, folder: Path) -> str:
    """The recipe's name: the one that the user wants, or the folder's.

    Raises:
        RecipeError: if results could not be kept under that name.
    """
    name = wanted or re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "mine"
    if FILE_NAME.fullmatch(name) is None:
        raise RecipeError(
            f"--name {name}: expected letters, digits, '.', '_' and '-', at most 100", hint="It names the folder of the results."
        )
    return name


def write_starter(folder: Path, name: str, wanted: Wanted, machine: Machine) -> Written:
    """Write the recipe, and the held-out prompts where models are compared.

    Raises:
        RecipeError: if the goal needs what is not there, or the folder has a recipe.
    """
    refuse_folder(folder)
    layout = lay_out(wanted)
    choice = fill_in(layout, wanted.model, machine)
    for part in layout.inputs.values():
        for key in ("path", "artifact"):
            if key in part.fields and part.fields[key] != HELD_OUT_NAME:
                part.fields[key] = _from_recipe(part.fields[key], folder)
    held_out = folder / HELD_OUT_NAME if layout.held_out else None
    recipe = folder / RECIPE_NAME
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        line = add_schema(folder)
        text = _environment().get_template(TEMPLATE_NAME).render(name=name, wanted=wanted, layout=layout, schema_line=line)
        if held_out is not None:
            held_out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in layout.held_out), encoding="utf-8")
        recipe.write_text(text, encoding="utf-8")
    load_recipe(recipe)  # what is written must be right; the numbers above are checked nowhere else
    used = [part.rows for part in layout.inputs.values()]
    unused = tuple(found.path for found in wanted.data if not any(found is rows for rows in used))
    return Written(recipe, held_out, choice, unused, layout.judge)


def _from_recipe(written: str, folder: Path) -> str:
    """A path as the recipe must say it, whose paths start at its own folder. Absolute ones stay."""
    path = Path(written).expanduser()
    if path.is_absolute():
        return str(path)
    # The links of folders are followed, as `..` does when the path is opened; the file's own name is kept.
    start = (folder.parent.resolve() / folder.name).resolve()
    return Path(os.path.relpath(path.parent.resolve() / path.name, start)).as_posix()


def _environment() -> Environment:
    made = templates.environment(Path(__file__).parent, autoescape=False)
    made.filters |= {"yaml": yaml_text, "comment": comment, "fields": _fields}
    made.globals |= {"goals": GOALS}
    return made


def _fields(part: Part) -> str:
    return "".join(f"{line}\n" for line in _lines(part))


def _lines(part: Part) -> Iterator[str]:
    for key, value in part.fields.items():
        line, remark = f"    {key}: {yaml_text(value)}", part.remarks.get(key)
        if remark is None:
            yield line
        elif len(line) + len(remark) + 4 <= MAX_COLUMNS:
            yield f"{line}  # {remark}"
        else:
            yield comment(remark, 4)
            yield line


def comment(text: str, indent: int = 0) -> str:
    """A comment of lines that fit."""
    begin = " " * indent + "# "
    return textwrap.fill(text, MAX_COLUMNS, initial_indent=begin, subsequent_indent=begin, break_long_words=False)


def yaml_text(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{yaml_text(key)}: {yaml_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    if isinstance(value, float):
        digits, _, power = f"{value:e}".partition("e")
        # 2e-4 and 0.1: as people write them.
        return f"{float(digits):g}e{int(power)}" if int(power) < -2 else f"{value:g}"
    if isinstance(value, str):
        return value if _is_plain(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _is_plain(text: str) -> bool:
    """Whether YAML reads the bare text, also inside brackets, as that text."""
    if not re.fullmatch(r"[\w./~-][\w./ ~-]*", text) or text != text.strip():
        return False
    try:
        return bool(parse_text(f"a: [{text}]", label="", show_lines=False).value == {"a": [text]})
    except RecipeError:
        return False
