"""`align docs`: the documentation that comes with align, for a terminal."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from align.cli import complete
from align.config.shipped import SHIPPED_DOCS
from align.errors import RecipeError

LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def docs(
    page: Annotated[
        str | None,
        typer.Argument(metavar="PAGE", help="Name of a page. Without it: all pages.", autocompletion=complete.docs_pages),
    ] = None,
) -> None:
    """Show a page of the documentation; without PAGE, list the pages.

    Prints Markdown where the output is no terminal: `align docs dpo > dpo.md`.
    """
    pages = {path.stem: path for path in sorted(SHIPPED_DOCS.glob("*.md"))}
    if page is None:
        width = max(map(len, pages))
        for name, path in pages.items():
            print(f"{name:<{width}}  {_title(path)}")
        return
    name = page.removeprefix("docs/").removesuffix(".md")
    if name not in pages:
        from align.config.names import unknown

        raise RecipeError(f"{page}: {unknown(name, list(pages), what='page')}", hint="`align docs` lists the pages.")
    text = pages[name].read_text(encoding="utf-8")
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    # Links lead to files that an installed package does not have; the words say which page is meant.
    with console.pager(styles=True):
        console.print(Markdown(LINK.sub(r"\1", text)))


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        heading = next(itertools.dropwhile(lambda line: not line.startswith("# "), lines), "")
    return heading.removeprefix("# ").strip().replace("`", "")
