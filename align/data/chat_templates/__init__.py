"""Chat templates for models that have none, or another than is wanted; a recipe names them by their file's stem."""

from __future__ import annotations

from pathlib import Path


def shipped_templates() -> dict[str, Path]:
    """The template files by name."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.jinja"))}
