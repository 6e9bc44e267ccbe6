"""Why a value of a row cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class FieldProblem(ValueError):
    """Why a value of a row cannot be used. `reason` is the row's `drop_reason`."""

    def __init__(self, field: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason
        self.message = message


def shown(value: Any) -> str:
    """A value as messages show it: at most 60 characters."""
    try:
        text = repr(value)
    except RecursionError:  # JSON may nest deeper than Python can write out
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…" + text[-1]


def noted(problems: list[FieldProblem], read: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
    """The result of `read`; None where it raises a problem, which then is in the list."""
    try:
        return read(*arguments, **options)
    except FieldProblem as problem:
        problems.append(problem)
        return None


def encoding_problem(field: str, value: str) -> FieldProblem | None:
    """Half a surrogate pair: JSON can write one, but UTF-8 cannot, and no tokenizer can read it."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        where = f"character {error.start + 1} (\\u{ord(value[error.start]):04x})"
        return FieldProblem(field, "lone_surrogate", f"{where} is half a surrogate pair, which no UTF-8 text can hold")
    return None
