"""`align data`: look at, check and convert data files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup
from typer.main import get_group

if TYPE_CHECKING:
    # Typer vendors click and has no public name for these types of its groups' methods.
    from typer._click import Command, Context


class DataGroup(TyperGroup):
    """Builds its commands on first use: their options list the kinds of rows, which `align --help` must not load."""

    def list_commands(self, ctx: Context) -> list[str]:
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        self._load()
        return super().get_command(ctx, cmd_name)

    def _load(self) -> None:
        from align.cli import data_convert, data_inspect, data_validate

        made = typer.Typer(rich_markup_mode=None)
        made.command("inspect")(data_inspect.inspect)
        made.command("convert")(data_convert.convert)
        made.command("validate")(data_validate.validate)
        self.commands = get_group(made).commands


app = typer.Typer(cls=DataGroup, help="Validate, inspect and convert data files.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _data() -> None:
    """Validate, inspect and convert data files."""
