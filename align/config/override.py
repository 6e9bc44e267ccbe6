"""`--set KEY=VALUE`: puts values from the command line into the recipe's document before it is checked."""

from __future__ import annotations

from align.config.explain import show_path, unknown
from align.config.reference import FieldPath
from align.config.source import Document, Position, parse_text
from align.errors import RecipeError

SECTIONS = ("inputs", "stages")
"""Keys at the top whose entries are named by the recipe."""


def apply_override(document: Document, text: str, *, rank: int) -> tuple[Position, str] | None:
    """Put one `KEY=VALUE` into the document; KEY is a path of keys and 0-based list indices joined by dots.

    Missing mappings on the way are created, but stages and inputs must exist. Unknown keys are reported later, when the whole
    document is checked.

    Returns:
        The problem with the path, or None.
    Raises:
        RecipeError: the text is not `KEY=VALUE` or the value is not YAML.
    """
    label = f"--set {text}"
    # Cut at the first equals sign, since a value may hold others.
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"{label}: expected KEY=VALUE", hint="For example --set stages.dpo.beta=0.2")
    replacement = parse_text(value_text, label=label, rank=rank, show_lines=False)
    position = replacement.values[()]
    path: FieldPath = ()
    for part in parts:
        here = document.get(path)
        # A key without a value (`checks:`) is null in YAML and counts as an empty mapping.
        if here is None and path:
            here = {}
            document.put(path, here, position)
        step = _step(here, part)
        if step is None:
            return position, f"{show_path(path)}: {_no_such_part(here, part)}"
        path = (*path, step)
        if len(path) < len(parts) and isinstance(here, dict) and part not in here:
            # A stage or input that does not exist is taken for a misspelt name.
            if len(path) == 2 and path[0] in SECTIONS:
                return position, f"{show_path(path)}: {unknown(part, list(here), what='name')}"
            document.put(path, {}, position)
    document.put(path, replacement.value, position)
    return None


def _step(here: object, part: str) -> str | int | None:
    """The key or index that `part` means in `here`, or None when it cannot mean any."""
    if isinstance(here, dict):
        return part
    return int(part) if isinstance(here, list) and part.isdecimal() and int(part) < len(here) else None


def _no_such_part(here: object, part: str) -> str:
    if isinstance(here, list):
        return f"'{part}' is not an index of this list of {len(here)} (the first is 0)"
    return f"this is a value ({here!r}); it has no key '{part}'"
