"""What all templates that come with align have in common."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment


def environment(folder: Path, *, autoescape: bool, sandboxed: bool = False) -> Environment:
    """The templates of a folder. A missing name is an error, and lines that hold only statements leave no blank line.

    Args:
        autoescape: whether texts are escaped for HTML.
        sandboxed: whether a template may only read what it is given: it may be a stranger's.
    """
    made = (SandboxedEnvironment if sandboxed else Environment)(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["thousands"] = lambda count: "–" if count is None else f"{count:,}"
    return made
