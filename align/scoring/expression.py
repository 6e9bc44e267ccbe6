"""Evaluates the arithmetic expression that a text ends with: parsed, never executed, and exact."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import regex

MAX_CHARACTERS = 300
"""Longest expression that is read."""

_SPELLINGS = {"×": "*", "·": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/", "−": "-", "–": "-", "\\left": ""}
_SPELLINGS |= {"\\right": "", "\\(": " ", "\\)": " ", "\\[": " ", "\\]": " ", "$": " "}
_TIMES = regex.compile(r"(?<=[0-9)])\s*[xX]\s*(?=[0-9(])")
_THOUSANDS = regex.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|(?<=[0-9])\.0+(?![0-9])")
# Full stops, closing markup and the Korean copula stand behind an expression: (3+5)*7입니다.
_BEHIND = regex.compile(r"[\s.!`*\p{Hangul}]*$")
_BULLET = regex.compile(r"\s*[-*]\s")
_NUMBERS = regex.compile(r"\s*[\[(]?\s*[0-9]{1,12}(?:(?:\s*,\s*|\s+)[0-9]{1,12})*\s*[\])]?\s*")


class Value(NamedTuple):
    """An expression, evaluated."""

    result: Fraction
    numbers: tuple[int, ...]
    """The numbers in it, in their order."""


def reaches(
    text: str, numbers: Sequence[int], target: Fraction, use: Literal["exactly_once", "at_most_once"] = "exactly_once"
) -> bool:
    """Whether `text` ends with an expression that equals `target` and has each of `numbers` once (or at most once).

    The expression is what the last line ends with, behind words or a colon. It may be one side of an equation whose other side
    is the target: `(3+5)*7 = 56`. Any other claim fails.
    """
    sides = [evaluate(side) for side in expression_in(text).split("=")]
    values = [side for side in sides if side is not None and side.result == target]
    if len(sides) > 2 or len(values) < len(sides):
        return False
    given = Counter(numbers)
    for value, other in zip(values, reversed(values), strict=True):
        used = Counter(value.numbers)
        fits = used == given if use == "exactly_once" else used <= given
        if fits and (len(values) == 1 or len(other.numbers) == 1):
            return True
    return False


def expression_in(text: str) -> str:
    """The expression or equation that the last line of `text` ends with, in Python's spelling; empty if there is none."""
    lines = text.rstrip()[-4 * MAX_CHARACTERS :].splitlines() or [""]
    line = lines[-1]
    for spelling, plain in _SPELLINGS.items():
        line = line.replace(spelling, plain)
    line = _BEHIND.sub("", _BULLET.sub("", line, count=1) if _BULLET.match(line) else line)
    line = _THOUSANDS.sub("", _TIMES.sub("*", line))
    run: str = line[len(line.rstrip("0123456789+-*/()= ")) :]
    before = line[: len(line) - len(run)][-1:]
    if not run.startswith(" ") and regex.match(r"[A-Za-z0-9.,^%!_]", before):
        return ""  # the end of something else: 1.5+2, x(3+5)
    return run.strip(" =*`")


def evaluate(expression: str) -> Value | None:
    """The value of an expression of whole numbers, + - * / between two operands, and parentheses.

    None for anything else: signs, powers, words, a division by zero, more than `MAX_CHARACTERS`.
    """
    if len(expression) > MAX_CHARACTERS or not expression.isascii():
        return None
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        numbers: list[int] = []
        return Value(_evaluated(tree.body, numbers), tuple(numbers))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluated(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        # `type`, since True is an int.
        case ast.Constant(value=value) if type(value) is int:
            numbers.append(value)
            return Fraction(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluated(left, numbers) + _evaluated(right, numbers)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _evaluated(left, numbers) - _evaluated(right, numbers)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluated(left, numbers) * _evaluated(right, numbers)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _evaluated(left, numbers) / _evaluated(right, numbers)
    raise ValueError(f"{type(node).__name__} is not allowed")


def whole_numbers(text: str) -> tuple[int, ...] | None:
    """The numbers of a column such as `3 5 7` or `[3, 5, 7]`; None if it holds anything else."""
    return tuple(map(int, regex.findall("[0-9]+", text))) if _NUMBERS.fullmatch(text) else None
