"""Options and output that several commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 120
"""Columns of a table when stdout is not a terminal."""

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or a folder with a recipe.yaml.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that holds all runs and their shared store.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe: stages.dpo.beta=0.2. Repeatable."),
]
OnlyOption = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run only this stage.")]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and the stages that depend on it.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Run this stage and the stages it depends on.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    # NaN is not JSON, and strict parsers refuse it. A program that reads the output must not be the first to notice.
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def output_console() -> Console:
    """A console on stdout, as wide as the terminal, or of a fixed width when there is none."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
