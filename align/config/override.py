"""`--set KEY=VALUE`: puts values from the command line into the recipe's document before it is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pydantic import BaseModel

from align.config.entry import written_blocks
from align.config.graph import StageTypeLike
from align.config.inputs import DataInput, ModelInput, ModelKind
from align.config.misplaced import SECTIONS, TOP_KEYS
from align.config.names import one_of, show_path, stage_type_of, unknown
from align.config.other_tools import words_for
from align.config.reference import FieldPath
from align.config.shape import is_model, members
from align.config.source import Document, Position, parse_text
from align.errors import RecipeError

COPY = re.compile(r"(?P<name>.+)-\d+-(?P<block>generate|score|pairs|dpo)")
MOST_PATHS = 3
"""More paths than this are not proposed."""


def apply_override(
    document: Document, text: str, stage_types: Mapping[str, StageTypeLike], *, rank: int
) -> tuple[Position, str] | None:
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
        raise RecipeError(f"{label}: expected KEY=VALUE", hint="For example --set stages.sft.num_epochs=2")
    replacement = parse_text(value_text, label=label, rank=rank, show_lines=False)
    position = replacement.values[()]
    if parts[0] not in TOP_KEYS and (meant := paths_meant(document, parts, stage_types)):
        return position, f"{key.strip()}: unknown key; did you mean {_proposals(meant)}?"
    path: FieldPath = ()
    for part in parts:
        here = document.get(path)
        # A key without a value (`checks:`) is null in YAML and counts as an empty mapping.
        if here is None and path:
            here = {}
            document.put(path, here, position)
        # A key with dots, as the fields of a sweep have.
        if isinstance(here, dict) and path and (rest := ".".join(parts[len(path) :])) in here:
            path = (*path, rest)
            break
        step = _step(here, part)
        if step is None:
            return position, f"{show_path(path)}: {_no_such_part(here, part)}"
        path = (*path, step)
        if len(path) < len(parts) and isinstance(here, dict) and part not in here:
            # A stage or input that does not exist is taken for a misspelt name.
            if len(path) == 2 and path[0] in SECTIONS:
                if meant := paths_meant(document, parts, stage_types):
                    return position, f"{show_path(path)}: unknown name; did you mean {_proposals(meant)}?"
                return position, f"{show_path(path)}: {unknown(part, list(here), what='name')}"
            document.put(path, {}, position)
    document.put(path, replacement.value, position)
    return None


def paths_meant(document: Document, parts: Sequence[str], stage_types: Mapping[str, StageTypeLike]) -> list[FieldPath]:
    """The paths of this recipe that hold `parts` in their order; the last may be the word of another tool."""
    # Somebody may write the name of one of the stages that the form stands for: dpo-1-generate.
    wanted = [piece for part in parts for piece in COPY.sub(r"\g<name>.\g<block>", part).split(".")]
    if len(wanted) > 1 and any(section in word.here for word in words_for("keys", wanted[0]) for section in SECTIONS):
        wanted = wanted[1:]
    kinds = [kind for part in wanted[:-1] if (kind := stage_type_of(part, stage_types))]
    keys = [wanted[-1], *(here for word in words_for("keys", wanted[-1]) for here in word.here)]
    known = list(_paths(document, stage_types))
    for key in keys:
        *section, field = key.split(".")
        asked = [*wanted[:-1], *([] if section == wanted[-2:-1] else section), field]
        if found := [path for path in known if _holds(path, asked)]:
            return found[:MOST_PATHS]
    # stages.dpo.beta for a stage of type dpo with another name, and actor.optim.lr of another tool.
    for key in keys:
        fitting = [
            path for path in known if path[-1] == key.rpartition(".")[2] and (not kinds or _type_at(path, document) in kinds)
        ]
        if fitting and (kinds or wanted[0] not in (*SECTIONS, *_names(document))):
            return fitting[:MOST_PATHS]
    return []


def _type_at(path: FieldPath, document: Document) -> str | None:
    entry = document.get(path[:2])
    return entry.get("stage", path[2]) if isinstance(entry, dict) else None


def _names(document: Document) -> list[str]:
    sections = (document.value.get(section) for section in SECTIONS)
    return [name for section in sections if isinstance(section, dict) for name in section]


def _proposals(paths: Sequence[FieldPath]) -> str:
    return one_of([f"'{show_path(path)}'" for path in paths])


def _holds(path: FieldPath, parts: Sequence[str]) -> bool:
    rest = iter(path)
    return path[-1] == parts[-1] and all(part in rest for part in parts)


def _paths(document: Document, stage_types: Mapping[str, StageTypeLike]) -> Iterator[FieldPath]:
    """Every path to a field of this recipe, given or not."""
    stages, inputs = (document.value.get(section) for section in ("stages", "inputs"))
    for name, entry in stages.items() if isinstance(stages, dict) else ():
        for path, stage, _ in written_blocks(name, entry) if isinstance(entry, dict) else ():
            if stage in stage_types:
                yield from ((*path, *inner) for inner in _fields(stage_types[stage].config_type))
    for name, entry in inputs.items() if isinstance(inputs, dict) else ():
        is_model_input = isinstance(entry, dict) and entry.get("kind") in get_args(ModelKind)
        yield from (("inputs", name, *inner) for inner in _fields(ModelInput if is_model_input else DataInput))


def _fields(model: type[BaseModel]) -> Iterator[FieldPath]:
    for name, info in model.model_fields.items():
        yield (name,)
        for alternative in members(info.annotation):
            if is_model(alternative):
                yield from ((name, inner) for inner in alternative.model_fields)


def _step(here: object, part: str) -> str | int | None:
    """The key or index that `part` means in `here`, or None when it cannot mean any."""
    if isinstance(here, dict):
        return part
    return int(part) if isinstance(here, list) and part.isdecimal() and int(part) < len(here) else None


def _no_such_part(here: object, part: str) -> str:
    if isinstance(here, list):
        return f"'{part}' is not an index of this list of {len(here)} (the first is 0)"
    return f"this is a value ({here!r}); it has no key '{part}'"
