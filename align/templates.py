"""What all templates that come with align have in common."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path, *, autoescape: bool) -> Environment:
    """The templates of a folder. A missing name is an error, and lines that hold only statements leave no blank line.

    Args:
        autoescape: whether texts are escaped for HTML.
    """
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["thousands"] = lambda count: "–" if count is None else f"{count:,}"
    return made
