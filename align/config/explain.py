"""Messages for problems in a recipe: the expected value, the value given, and the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from align.config.advice import advice
from align.config.base import Problem
from align.config.names import NO_PLACE, Place, as_written, keys_inside, listing, nearest, unknown, unknown_key
from align.config.other_tools import value_here
from align.config.reference import FieldPath, is_reference, kinds_of
from align.config.rules import RuleSet
from align.config.shape import Members, fitting_model, follow, is_model, members
from align.rows import ROW_KINDS

ARTICLES = {"model": "a model", "reward_model": "a reward model", "comparison": "a comparison"}
_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def kind_phrase(kind: str) -> str:
    """`a reward model`, `scored candidates`."""
    return ROW_KINDS[kind].phrase if kind in ROW_KINDS else ARTICLES.get(kind, kind)


def show_value(value: Any) -> str:
    """A value of a document, in a few words."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        # A number of hundreds of digits would fill the message.
        return f"the number {value}" if len(str(value)) <= 40 else "a huge number"
    if isinstance(value, str):
        return f"the text '{shortened(value)}'"
    return "an empty list" if value == [] else "a list" if isinstance(value, list) else "a mapping"


def shortened(text: str) -> str:
    """A text of a document, in a line."""
    return text if len(text) <= 60 else text[:59] + "…"


def describe(alternatives: Members) -> str:
    """What a value may be, in words."""
    return ", or ".join(dict.fromkeys(_describe_one(alternative) for alternative in alternatives)) or "something else"


def _describe_one(alternative: Any) -> str:
    simple = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    origin: Any = get_origin(alternative)
    arguments = get_args(alternative)
    if origin is dict and arguments[1] is Any:
        return "a mapping"
    if alternative in simple:
        return simple[alternative]
    if is_reference(alternative):
        return f"the name of {' or '.join(kind_phrase(kind) for kind in kinds_of(alternative))}"
    if alternative is RuleSet:
        return "a list of rules, or the path of a YAML file that holds one"
    if is_model(alternative):
        required = [name for name, info in alternative.model_fields.items() if info.is_required()]
        return f"{{{', '.join(f'{name}: …' for name in required)}}}" if required else "a mapping"
    if origin is Literal:
        return f"one of {', '.join(str(argument) for argument in arguments)}" if len(arguments) > 1 else f"'{arguments[0]}'"
    if origin is list:
        return f"a list, each entry {describe(members(arguments[0]))}"
    return f"a mapping of names, each to {describe(members(arguments[1]))}" if origin is dict else "something else"


def expected(alternatives: Members, value: Any, key: str = "") -> str:
    """`expected a number, got the text '1e-5' (remove the quotes)`; `key` is that of the value."""
    shown = "an empty text" if value == "" else show_value(value)
    text = f"expected {describe(alternatives)}, got {shown}"
    choices = [str(choice) for alternative in alternatives for choice in get_args(alternative) if isinstance(choice, str)]
    near = (value_here(key, value) or nearest(value, choices)) if isinstance(value, str) and choices else None
    return f"{text}; did you mean '{near}'?" if near in choices else f"{text}{advice(alternatives, value, key)}"


Branch = tuple[FieldPath, str]
"""The path of a union in the document, and the alternative that was tried."""


def problems_of(
    error: ValidationError,
    config_type: type[BaseModel],
    document: Any,
    place: Place = NO_PLACE,
) -> Iterator[Problem]:
    """The problems behind a failed validation of `document`, each once, in align's words instead of pydantic's.

    Args:
        error: what `config_type.model_validate(document)` raised.
        config_type: the type that refused the document.
        document: the value as written.
        place: where `document` stands in a recipe; paths of the problems begin at `document` all the same.
    """
    located = [(*_locate(details["loc"], document, details["type"]), details) for details in error.errors(include_url=False)]
    # pydantic reports the errors of every alternative of a union, also of those that were not meant.
    meant = _without_other_branches(located)
    found = [_translate(path, details, (config_type,), document, place) for path, details in meant]
    # A misspelt key is one mistake: pydantic reports it twice, as unknown and as the right key missing.
    misspelt = {(*problem.path[:-1], problem.instead_of) for problem in found if problem.instead_of}
    yield from dict.fromkeys(problem for problem in found if not (problem.missing_key and problem.path in misspelt))


def _locate(location: FieldPath, document: Any, kind: str) -> tuple[FieldPath, Branch | None]:
    """The path in the document, and the union (its path, the branch tried) that the error belongs to, if any.

    The validator's locations also hold the names of union branches; those are not keys of the document.
    """
    path: list[str | int] = []
    branch: Branch | None = None
    value = document
    for index, part in enumerate(location):
        is_key = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if is_key:
            value = value[part]
            path.append(part)
        # A missing key is in no document, but it is the last part of its location.
        elif kind == "missing" and index == len(location) - 1:
            path.append(part)
        elif branch is None and isinstance(part, str):
            branch = (tuple(path), part)
    return tuple(path), branch


def _without_other_branches(located: Sequence[tuple[FieldPath, Branch | None, Any]]) -> Iterator[tuple[FieldPath, Any]]:
    """Keep the errors of the union branches that the value was meant for: those that accept its type."""
    tried: dict[FieldPath, set[str]] = {}
    failed_at_once: dict[FieldPath, set[str]] = {}
    for path, branch, details in located:
        if branch:
            tried.setdefault(branch[0], set()).add(branch[1])
            # An alternative that refuses the type of the value itself was not the one meant.
            refuses_type = details["type"].endswith("_type")
            refuses_type |= details["type"] == "literal_error" and not isinstance(details["input"], str)  # a number for 'auto'
            if path == branch[0] and refuses_type:
                failed_at_once.setdefault(branch[0], set()).add(branch[1])
    for path, branch, details in located:
        # If every alternative refuses the type, all of their errors stay.
        meant = tried[branch[0]] - failed_at_once.get(branch[0], set()) if branch else set()
        if branch is None or not meant or branch[1] in meant:
            yield path, details


def _translate(path: FieldPath, details: Any, top: Members, document: Any, place: Place) -> Problem:
    kind, context = details["type"], details.get("ctx", {})
    alternatives, value = follow(top, document, path)
    if kind == "extra_forbidden":
        return _unknown_key(path, top, document, place)
    if kind == "missing":
        return Problem(path, f"this key is missing; expected {describe(alternatives)}", at_key=True, missing_key=True)
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return Problem(
            path, f"must be {words} {_number(context[limit])}, got {value}{_on_limit(context[limit], path, value, top, document)}"
        )
    if kind == "finite_number":
        return Problem(path, f"must be a finite number, got {value}")
    if kind in ("too_short", "string_too_short"):
        least = context["min_length"]
        return Problem(path, "must not be empty" if least == 1 else f"must have at least {least} entries")
    if kind == "too_long":
        return Problem(path, f"must have at most {context['max_length']} entries")
    if kind == "union_tag_not_found":
        here = replace(place, path=(*place.path, *path))
        return _missing_tag(path, context["discriminator"].strip("'"), alternatives, value, here)
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        near = value_here(tag, context["tag"])
        known = _tags(alternatives, tag)
        text = f"unknown {tag}; did you mean '{near}'?" if near in known else unknown(context["tag"], known, what=tag)
        return Problem((*path, tag), text)
    if kind in ("value_error", "assertion_error"):
        return Problem(path, str(context["error"]))
    if kind.endswith("_type") or kind in ("int_from_float", "is_instance_of", "literal_error"):
        text = expected(alternatives, value, str(path[-1]) if path else "")
        return Problem(path, f"{text}{_beside(path, value, top, document)}")
    # Any other error of pydantic: its own words, in align's form.
    return Problem(path, details["msg"].replace("Input should", "must").rstrip("."))


def _on_limit(limit: float, path: FieldPath, value: Any, top: Members, document: Any) -> str:
    """What to do about -1 and 0, by which people switch a limit off, and about a percentage."""
    info = _fields_around(path, top, document).get(str(path[-1])) if path else None
    if limit > 0 and value in (-1, 0) and info is not None and info.default is None:
        return " (leave the key out for no limit)"
    return f" (for {value:g} % write {value / 100:g})" if 1 < value < 100 and _is_share(info) else ""


def _is_share(info: Any) -> bool:
    """Whether a number lies between 0 and 1."""
    return info is not None and any(1 in (getattr(limit, "le", None), getattr(limit, "lt", None)) for limit in info.metadata)


def _beside(path: FieldPath, value: Any, top: Members, document: Any) -> str:
    """For a mapping in place of a plain value, as other tools have: which of its keys are keys of the section around it."""
    if not isinstance(value, dict) or not path:
        return ""
    found = keys_inside(value, [name for name in _fields_around(path, top, document) if name != path[-1]])
    return f" (beside it: {as_written(found)})" if found else ""


def _fields_around(path: FieldPath, top: Members, document: Any) -> Mapping[str, Any]:
    model = fitting_model(*follow(top, document, path[:-1]))
    return model.model_fields if model else {}


def _missing_tag(path: FieldPath, tag: str, alternatives: Members, value: Any, place: Place) -> Problem:
    """For a mapping without the key that says which of several models it is for."""
    known = list(dict.fromkeys(name for model in alternatives if is_model(model) for name in model.model_fields))
    meant = {key: unknown_key(key, value, known, place, None).key for key in value if key not in known}
    for key, near in meant.items():
        if near == tag:
            return Problem((*path, key), f"unknown key; did you mean '{tag}'?", at_key=True)
    others = "".join(f"; for '{key}', did you mean '{near}'?" for key, near in meant.items() if near)
    return Problem(path, f"the key '{tag}' is missing; expected one of {listing(_tags(alternatives, tag))}{others}")


def _unknown_key(path: FieldPath, top: Members, document: Any, place: Place) -> Problem:
    *around, key = path
    alternatives, section = follow(top, document, tuple(around))
    model = fitting_model(alternatives, section)
    known = [name for name in model.model_fields if around or name not in place.hidden_keys] if model else []
    if around:
        outer = fitting_model(*follow(top, document, tuple(around[:-1])))
        place = replace(place, path=(*place.path, *around), inner={}, outer=outer)
    else:
        known = [*place.extra_keys, *known]
    meant = unknown_key(str(key), section if isinstance(section, dict) else {}, known, place, model)
    return Problem(path, meant.text, at_key=True, instead_of=meant.key)


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _tags(alternatives: Members, tag: str) -> list[str]:
    """The values that a discriminating key can have."""
    return [str(value) for model in alternatives if is_model(model) for value in get_args(model.model_fields[tag].annotation)]
