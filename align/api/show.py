"""What rich can print, as text for a prompt and as HTML for a notebook."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

NOTEBOOK_WIDTH = 110
HTML = '<pre style="line-height: 1.3; overflow-x: auto; white-space: pre">{code}</pre>'


def as_text(*parts: RenderableType) -> str:
    """The parts one below the other, as wide as the terminal at most, without colours and spaces at the ends of lines."""
    console = _console(shutil.get_terminal_size((NOTEBOOK_WIDTH, 24)).columns)
    console.print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())


def as_html(*parts: RenderableType) -> str:
    """The parts one below the other, with colours; nothing in them is taken for HTML."""
    console = _console(NOTEBOOK_WIDTH)
    console.print(*parts, sep="\n")
    return console.export_html(inline_styles=True, code_format=HTML)


def _console(width: int) -> Console:
    from rich.console import Console

    # Into a buffer, not a notebook's cell: rich would show what it prints there at once.
    return Console(
        file=io.StringIO(), record=True, width=width, force_jupyter=False, force_terminal=True, highlight=False, markup=False
    )
