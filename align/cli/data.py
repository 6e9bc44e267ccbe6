"""`align data`: look at, check and convert data files."""

from __future__ import annotations

import typer

from align.cli import data_convert, data_inspect, data_validate

app = typer.Typer(help="Validate, inspect and convert data files.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _data() -> None:
    """Validate, inspect and convert data files."""


app.command("inspect")(data_inspect.inspect)
app.command("convert")(data_convert.convert)
app.command("validate")(data_validate.validate)
