"""How to write a value that has the wrong type, where it can be seen what was meant."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from align.config.other_tools import value_here
from align.config.reference import is_reference
from align.config.shape import Members, is_list, is_model, members
from align.config.source import resolve_scalar

YES_NO = dict.fromkeys(("yes", "on", "y", "true", "1"), "true") | dict.fromkeys(("no", "off", "n", "false", "0"), "false")
LEAVE_OUT = ("none", "nil", "null", "default", "auto", "inf", "-", "unlimited", "off", "no", "false", "~", "max")
"""Texts by which people mean that nothing is set."""
NUMBER = re.compile(r"(?P<digits>[-+]?[0-9.,]+(?:[eE][-+]?[0-9]+)?)(?P<unit>%|[a-zA-Z]*)")
"""A number with a unit or a comma, as people write it."""
UNITS = {"%": 0.01, "k": 1000.0, "m": 1_000_000.0}
MOST_SEEDS = 10
"""More seeds than this are not meant by their number."""
BYTES = ("b", "kb", "mb", "gb", "tb", "kib", "mib", "gib")
"""Units of what is counted in tokens or rows here."""
MINUTES = {"m": 1.0, "min": 1.0, "h": 60.0, "s": 1 / 60}
NUMBER_TYPES: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), bool: (bool,)}


def advice(alternatives: Members, value: Any, key: str = "") -> str:
    """How to write what was probably meant, in parentheses, or nothing; `key` is that of the value."""
    text = _advice(alternatives, value, key)
    return f" ({text})" if text else ""


def _advice(alternatives: Members, value: Any, key: str) -> str:
    is_name = any(alternative is str or is_reference(alternative) for alternative in alternatives)
    for alternative in alternatives:
        origin: Any = get_origin(alternative)
        if origin is dict:
            return _advice_on_names(members(get_args(alternative)[1]), value)
    if isinstance(value, (dict, list)):
        return _advice_on_several(alternatives, value, key) if value else ""
    if isinstance(value, bool) or value in (None, ""):
        return ""
    if any(is_list(alternative) for alternative in alternatives):
        is_number_of_seeds = key == "seeds" and isinstance(value, int) and 1 < value <= MOST_SEEDS
        return f"write {listed(range(1, value + 1))}" if is_number_of_seeds else f"write [{value}]"
    if not isinstance(value, str):
        if isinstance(value, float) and value.is_integer() and int in alternatives:
            return f"write {value:.0f}"
        if bool in alternatives and str(value) in YES_NO:
            return f"write {YES_NO[str(value)]}"
        return "put quotes around it" if is_name else ""
    if bool in alternatives and value.lower() in YES_NO:
        return "remove the quotes" if value.lower() in ("true", "false") else f"write {YES_NO[value.lower()]}"
    if tagged := _tagged(alternatives, value):
        return f"write {tagged}"
    types = [type_ for alternative in alternatives for type_ in NUMBER_TYPES.get(alternative, ())]
    if type(resolve_scalar(value)) in types:
        return "remove the quotes"
    return _advice_on_number(value, types, UNITS | MINUTES if key.endswith("_minutes") else UNITS)


def listed(values: Iterable[object]) -> str:
    """`[1, 2, 3]`."""
    return f"[{', '.join(map(str, values))}]"


def _advice_on_several(alternatives: Members, value: Sequence[Any] | Mapping[str, Any], key: str) -> str:
    """For a list or mapping in place of one value."""
    if isinstance(value, Mapping):
        is_reference_wanted = any(map(is_reference, alternatives))
        return "write its name, and the mapping under inputs: {NAME: {kind: …}}" if is_reference_wanted else ""
    if key == "seed":
        return f"write seeds: {value} for several"
    if not any(alternative is str or is_reference(alternative) for alternative in alternatives):
        return ""
    return f"write {value[0]}" if len(value) == 1 else "several sources are one input with a mixture"


def _advice_on_names(values: Members, value: Any) -> str:
    """For a mapping of names, in place of which only the values are given."""
    names = value if isinstance(value, list) else [value]
    if names and all(isinstance(name, str) and name for name in names):
        if any(map(is_reference, values)):
            return f"write {{{', '.join(f'{name}: {name}' for name in names)}}}"
        return "write {NAME: VALUE}" if str not in values else f"write {{NAME: {names[0]}}}"
    if float in values and names and all(isinstance(number, (int, float)) for number in names):
        return f"write {{NAME: {names[0]}}}, each under its name"
    return ""


def _tagged(alternatives: Members, value: str) -> str | None:
    """`{method: lora}` for the text `lora`, where a mapping with such a key is expected."""
    for model in alternatives:
        for name, info in model.model_fields.items() if is_model(model) else ():
            choices = get_args(info.annotation) if info.is_required() else ()
            if found := next((word for word in (value, value_here(name, value)) if word in choices), None):
                return f"{{{name}: {found}}}"
    return None


def _advice_on_number(value: str, types: Sequence[type], units: Mapping[str, float]) -> str:
    """For a text that people read as a number and YAML does not."""
    if not types or bool in types:
        return ""
    if value.strip().lower() in LEAVE_OUT:
        return "leave the key out for the default"
    half_width = unicodedata.normalize("NFKC", value)
    if half_width != value and type(resolve_scalar(half_width)) in types:
        return f"write {half_width}: these are full-width characters"
    number = NUMBER.fullmatch(half_width.rstrip(" ,;").replace("\N{MINUS SIGN}", "-").replace(" ", "").replace("_", ""))
    if number is None or number["unit"].lower() in BYTES:
        return ""
    digits, unit = number["digits"], number["unit"].lower()
    whole, comma, after = digits.rpartition(",")
    # 1,024 is a thousand for a count; 0,001 has a decimal comma.
    is_count = float not in types or (len(after) == 3 and whole.strip("+-") not in ("", "0"))
    plain = digits.replace(",", "" if is_count else ".")
    try:
        amount = float(plain) * units.get(unit, 1.0)
    except ValueError:
        return ""
    rounded = f"{amount:.0f}" if amount.is_integer() else f"{amount:g}"
    right = rounded if unit in units else plain
    return f"write {right}{': a number has a point, not a comma' if comma and not is_count else ''}"
