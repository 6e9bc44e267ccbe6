"""Messages for problems in a recipe: the expected value, the value given, and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from align.config.base import Problem
from align.config.reference import FieldPath, is_reference, kinds_of
from align.config.rules import RuleSet
from align.config.shape import Members, fitting_model, follow, is_list, is_model, members
from align.config.source import resolve_scalar
from align.rows import ROW_KINDS

LISTED_CHARACTERS = 110
"""A list of names in a message is cut near this length."""
YES_NO = dict.fromkeys(("yes", "on", "y"), "true") | dict.fromkeys(("no", "off", "n"), "false")

ARTICLES = {"model": "a model", "reward_model": "a reward model", "comparison": "a comparison"}
_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def show_path(path: FieldPath) -> str:
    """A path as people write it: `stages.compare.models.0`."""
    return ".".join(str(part) for part in path)


def kind_phrase(kind: str) -> str:
    """`a reward model`, `scored candidates`."""
    return ROW_KINDS[kind].phrase if kind in ROW_KINDS else ARTICLES.get(kind, kind)


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, or None."""
    # difflib takes letters in another case for different letters.
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def listing(names: Iterable[str]) -> str:
    """Names joined by commas, cut where a line would become too long."""
    shown = ""
    for name in names:
        if len(shown) + len(name) > LISTED_CHARACTERS:
            return f"{shown}, …"
        shown += f", {name}" if shown else name
    return shown


def unknown(given: str, known: Sequence[str], *, what: str = "key") -> str:
    """The message for a name that does not exist."""
    near = nearest(given, known)
    if near is not None:
        return f"unknown {what}; did you mean '{near}'?"
    return f"unknown {what}; valid: {listing(known)}" if known else f"unknown {what}; there is none to name"


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
        return f"the text '{value if len(value) <= 60 else value[:59] + '…'}'"
    return "an empty list" if value == [] else "a list" if isinstance(value, list) else "a mapping"


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


def expected(alternatives: Members, value: Any) -> str:
    """`expected a number, got the text '1e-5' (remove the quotes)`."""
    shown = "an empty text" if value == "" else show_value(value)
    return f"expected {describe(alternatives)}, got {shown}{_advice(alternatives, value)}"


def _advice(alternatives: Members, value: Any) -> str:
    """How to write what was probably meant, in parentheses, or nothing."""
    if isinstance(value, (list, dict, bool)) or value in (None, ""):
        return ""
    if any(is_list(alternative) for alternative in alternatives):
        return f" (write [{value}])"
    if not isinstance(value, str):
        takes_text = any(alternative is str or is_reference(alternative) for alternative in alternatives)
        return " (put quotes around it)" if takes_text else ""
    if bool in alternatives and value.lower() in YES_NO:
        return f" (write {YES_NO[value.lower()]})"
    plain = resolve_scalar(value)
    fitting = {float: (int, float), int: (int,), bool: (bool,)}
    return " (remove the quotes)" if any(type(plain) in fitting.get(alternative, ()) for alternative in alternatives) else ""


Branch = tuple[FieldPath, str]
"""The path of a union in the document, and the alternative that was tried."""


def problems_of(
    error: ValidationError,
    config_type: type[BaseModel],
    document: Any,
    *,
    extra_keys: Sequence[str] = (),
    hidden_keys: Collection[str] = (),
) -> Iterator[Problem]:
    """The problems behind a failed validation of `document`, each once, in align's words instead of pydantic's.

    Args:
        error: what `config_type.model_validate(document)` raised.
        config_type: the type that refused the document.
        document: the value as written.
        extra_keys: further valid keys at the top.
        hidden_keys: fields of the type that are not listed as valid keys.
    """
    located = [(*_locate(details["loc"], document, details["type"]), details) for details in error.errors(include_url=False)]
    # pydantic reports the errors of every alternative of a union, also of those that were not meant.
    meant = _without_other_branches(located)
    top = [*extra_keys, *(key for key in config_type.model_fields if key not in hidden_keys)]
    found = [_translate(path, details, (config_type,), document, top) for path, details in meant]
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
            if path == branch[0] and details["type"].endswith("_type"):
                failed_at_once.setdefault(branch[0], set()).add(branch[1])
    for path, branch, details in located:
        # If every alternative refuses the type, all of their errors stay.
        meant = tried[branch[0]] - failed_at_once.get(branch[0], set()) if branch else set()
        if branch is None or not meant or branch[1] in meant:
            yield path, details


def _translate(path: FieldPath, details: Any, top: Members, document: Any, top_keys: Sequence[str]) -> Problem:
    kind, context = details["type"], details.get("ctx", {})
    alternatives, value = follow(top, document, path)
    if kind == "extra_forbidden":
        model = fitting_model(*follow(top, document, path[:-1]))
        known = top_keys if len(path) == 1 else list(model.model_fields) if model else []
        key = str(path[-1])
        return Problem(path, unknown(key, known), at_key=True, instead_of=nearest(key, known))
    if kind == "missing":
        return Problem(path, f"this key is missing; expected {describe(alternatives)}", at_key=True, missing_key=True)
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return Problem(path, f"must be {words} {_number(context[limit])}, got {value}")
    if kind == "finite_number":
        return Problem(path, f"must be a finite number, got {value}")
    if kind in ("too_short", "string_too_short"):
        least = context["min_length"]
        return Problem(path, "must not be empty" if least == 1 else f"must have at least {least} entries")
    if kind == "too_long":
        return Problem(path, f"must have at most {context['max_length']} entries")
    if kind == "literal_error":
        near = nearest(value, [str(choice) for choice in get_args(alternatives[0])]) if isinstance(value, str) else None
        return Problem(path, expected(alternatives, value) + (f"; did you mean '{near}'?" if near else ""))
    if kind == "union_tag_not_found":
        tag = context["discriminator"].strip("'")
        return Problem(path, f"the key '{tag}' is missing; expected one of {listing(_tags(alternatives, tag))}")
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        return Problem((*path, tag), unknown(context["tag"], _tags(alternatives, tag), what=tag))
    if kind in ("value_error", "assertion_error"):
        return Problem(path, str(context["error"]))
    if kind.endswith("_type") or kind in ("int_from_float", "is_instance_of"):
        return Problem(path, expected(alternatives, value))
    # Any other error of pydantic: its own words, in align's form.
    return Problem(path, details["msg"].replace("Input should", "must").rstrip("."))


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _tags(alternatives: Members, tag: str) -> list[str]:
    """The values that a discriminating key can have."""
    return [str(value) for model in alternatives if is_model(model) for value in get_args(model.model_fields[tag].annotation)]
