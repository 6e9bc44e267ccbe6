"""Options and output that several commands share."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from align.cli import complete
from align.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from align.models.folder import ModelFolder

PIPE_WIDTH = 120
"""Columns of a table when stdout is not a terminal."""

RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, a folder with a recipe.yaml, or else the name of a recipe that comes with align.",
        autocompletion=complete.recipes,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that holds all runs and their shared store.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe: stages.sft.num_epochs=2. Repeatable."),
]


def _stage_option(name: str, text: str) -> Any:
    return typer.Option(name, metavar="STAGE", help=text, autocompletion=complete.stages_of_recipe)


OnlyOption = Annotated[str | None, _stage_option("--only", "Run this stage alone, without --from or --until.")]
FromOption = Annotated[str | None, _stage_option("--from", "Run this stage and the stages that depend on it.")]
UntilOption = Annotated[str | None, _stage_option("--until", "Run this stage and the stages it depends on.")]
MachineOption = Annotated[
    Path | None,
    typer.Option(
        "--machine",
        metavar="FILE",
        help="How work is spread over devices. Default: ALIGN_MACHINE, or machine.yaml in the recipe's folder.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="FIELD=COLUMN", help="Our field and the file's column: prompt=question. Repeatable."),
]

ChatOption = Annotated[
    str | None,
    typer.Option(
        "--chat",
        metavar="SETTINGS",
        help="The model's chat format, as `chat` in a recipe: '{template: chatml, system: drop}'.",
    ),
]


def with_chat(folder: ModelFolder, chat: str | None) -> ModelFolder:
    """The model with what --chat says of its conversations, in place of what its folder says.

    Raises:
        RecipeError: if the settings or the folder cannot be used.
    """
    if chat is None:
        return folder
    from pydantic import ValidationError

    from align.config.chat import ChatSettings
    from align.config.explain import problems_of
    from align.config.names import show_path
    from align.config.source import parse_text
    from align.models.chat_settings import resolve_chat

    label = f"--chat {chat}"
    value = parse_text(chat, label=label, show_lines=False).value
    try:
        settings = ChatSettings.model_validate(value)
    except ValidationError as error:
        found = [f"{show_path(problem.path)}: {problem.text}" for problem in problems_of(error, ChatSettings, value)]
        raise RecipeError(
            f"{label}: {'; '.join(found).removeprefix(': ')}", hint="See `align docs chat` for the settings."
        ) from error
    locate = lambda written: Path(written).expanduser()  # noqa: E731
    return replace(folder, chat=resolve_chat(settings, folder, locate=locate, where=label))


def column_mapping(pairs: list[str] | None) -> dict[str, str]:
    """Parse `prompt=question` into field → column.

    Raises:
        RecipeError: if a pair does not have this form, or a field is mapped twice.
    """
    mapping: dict[str, str] = {}
    for pair in pairs or []:
        name, sign, column = pair.partition("=")
        if not (name and sign and column):
            raise RecipeError(f"--columns {pair}: expected FIELD=COLUMN", hint="For example: --columns prompt=question")
        if name in mapping:
            raise RecipeError(f"--columns {pair}: {name} is mapped to {mapping[name]} already")
        mapping[name] = column
    return mapping


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    # NaN is not JSON, and strict parsers refuse it. A program that reads the output must not be the first to notice.
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def output_console() -> Console:
    """A console on stdout, as wide as the terminal, or of a fixed width when there is none."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
