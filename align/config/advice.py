"""How to write a value that has the wrong type, where it can be seen what was meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from align.config.other_tools import value_here
from align.config.reference import is_reference
from align.config.shape import Members, is_list, is_model
from align.config.source import resolve_scalar

YES_NO = dict.fromkeys(("yes", "on", "y", "true", "1"), "true") | dict.fromkeys(("no", "off", "n", "false", "0"), "false")
LEAVE_OUT = ("none", "nil", "null", "default", "auto", "inf", "-", "unlimited", "off", "no", "false", "~", "max")
"""Texts by which people mean that nothing is set."""
NUMBER = re.compile(r"(?P<digits>[-+]?[0-9.,]+(?:[eE][-+]?[0-9]+)?)(?P<unit>%|[a-zA-Z]*)")
"""A number with a unit or a comma, as people write it."""
UNITS = {"%": 0.01, "k": 1000.0, "m": 1_000_000.0}
NUMBER_TYPES: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), bool: (bool,)}


def advice(alternatives: Members, value: Any) -> str:
    """How to write what was probably meant, in parentheses, or nothing."""
    text = _advice(alternatives, value)
    return f" ({text})" if text else ""


def _advice(alternatives: Members, value: Any) -> str:
    if isinstance(value, list):
        is_name = any(alternative is str or is_reference(alternative) for alternative in alternatives)
        return (
            (f"write {value[0]}" if len(value) == 1 else "several sources are one input with a mixture")
            if is_name and value
            else ""
        )
    if isinstance(value, (dict, bool)) or value in (None, ""):
        return ""
    if any(is_list(alternative) for alternative in alternatives):
        return f"write [{value}]"
    if not isinstance(value, str):
        if isinstance(value, float) and value.is_integer() and int in alternatives:
            return f"write {value:.0f}"
        if bool in alternatives and str(value) in YES_NO:
            return f"write {YES_NO[str(value)]}"
        takes_text = any(alternative is str or is_reference(alternative) for alternative in alternatives)
        return "put quotes around it" if takes_text else ""
    if bool in alternatives and value.lower() in YES_NO:
        return "remove the quotes" if value.lower() in ("true", "false") else f"write {YES_NO[value.lower()]}"
    if tagged := _tagged(alternatives, value):
        return f"write {tagged}"
    types = [type_ for alternative in alternatives for type_ in NUMBER_TYPES.get(alternative, ())]
    if type(resolve_scalar(value)) in types:
        return "remove the quotes"
    return _advice_on_number(value, types)


def _tagged(alternatives: Members, value: str) -> str | None:
    """`{method: lora}` for the text `lora`, where a mapping with such a key is expected."""
    for model in alternatives:
        for name, info in model.model_fields.items() if is_model(model) else ():
            choices = get_args(info.annotation) if info.is_required() else ()
            if found := next((word for word in (value, value_here(name, value)) if word in choices), None):
                return f"{{{name}: {found}}}"
    return None


def _advice_on_number(value: str, types: Sequence[type]) -> str:
    """For a text that people read as a number and YAML does not."""
    if not types or bool in types:
        return ""
    if value.strip().lower() in LEAVE_OUT:
        return "leave the key out for the default"
    number = NUMBER.fullmatch(value.replace("\N{MINUS SIGN}", "-").replace(" ", "").replace("_", ""))
    if number is None:
        return ""
    digits, unit = number["digits"], number["unit"].lower()
    whole, comma, after = digits.rpartition(",")
    # 1,024 is a thousand for a count; 0,001 has a decimal comma.
    is_count = float not in types or (len(after) == 3 and whole.strip("+-") not in ("", "0"))
    plain = digits.replace(",", "" if is_count else ".")
    try:
        amount = float(plain) * UNITS.get(unit, 1.0)
    except ValueError:
        return ""
    rounded = f"{amount:.0f}" if amount.is_integer() else f"{amount:g}"
    right = rounded if unit in UNITS else plain
    return f"write {right}{': a number has a point, not a comma' if comma and not is_count else ''}"
