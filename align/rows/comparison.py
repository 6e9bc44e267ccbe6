"""What a row says about which of several completions is better: a label, a ranking, scores or ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.rows.conversation import FieldProblem, shown

_ENDINGS = {"12": ("1", "2"), "01": ("0", "1")}
_TIES = ("tie", "tie (bothbad)")


@dataclass(frozen=True)
class Order:
    """The best of several completions."""

    best: int
    """Its place in the list, from 0; the first of several that are equally good."""
    ties: frozenset[int]
    """Places of others that are as good."""
    scores: Sequence[float] | None
    """Score by place, where the row has scores."""

    def score(self, place: int) -> float | None:
        """The completion's score, if it has one."""
        return None if self.scores is None else self.scores[place]


def is_first_preferred(label: Any, first: str, second: str) -> bool:
    """Whether a label prefers the completion of column `first` to that of column `second`.

    The columns' names decide what labels mean: 1 and 2 for `output_1` and `output_2`, 0 and 1 for `response_0` and `response_1`,
    otherwise A and B (or model_a and model_b), in either case; a column's own name always stands for it.

    Raises:
        FieldProblem: tie, or wrong_type for a label that means neither.
    """
    one, other = _ENDINGS.get((first[-1:] + second[-1:]).lower(), ("a", "b"))
    names = [{one, f"model_{one}", first.lower()}, {other, f"model_{other}", second.lower()}]
    value = label
    if isinstance(label, float) and label.is_integer():
        value = int(label)
    text = str(value).strip().lower() if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if text in _TIES:
        raise FieldProblem("label", "tie", f"prefers neither completion: {shown(label)}")
    for preferred, called in ((True, names[0]), (False, names[1])):
        if text in called:
            return preferred
    raise FieldProblem(
        "label",
        "wrong_type",
        f"must be {one.upper()} for {first!r} or {other.upper()} for {second!r}, or tie, but is {shown(label)}",
    )


def best_of(field: str, values: Any, scores: Any, ranks: Any) -> Order:
    """Which of the completions in the list `values` is the best.

    Args:
        field: how messages call the list.
        scores: one number per completion, higher is better; or None.
        ranks: one number per completion, lower is better; or None. Without both, the list is ordered, best first.
    Raises:
        FieldProblem: wrong_type for what is no list of at least two, or no list of numbers that fits it; nonfinite_score.
    """
    if not isinstance(values, list) or len(values) < 2:
        raise FieldProblem(field, "wrong_type", f"must be a list of at least two completions, but is {shown(values)}")
    if scores is None and ranks is None:
        return Order(0, frozenset(), None)
    numbers = _numbers("scores" if ranks is None else "ranks", scores if ranks is None else ranks, len(values))
    top = max(numbers) if ranks is None else min(numbers)
    best, *ties = (place for place, number in enumerate(numbers) if number == top)
    return Order(best, frozenset(ties), numbers if ranks is None else None)


def _numbers(field: str, values: Any, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise FieldProblem(field, "wrong_type", f"must be a list of {count} numbers, one per completion, but is {shown(values)}")
    return [number_of(f"{field} {place}", value) for place, value in enumerate(values, start=1)]


def number_of(field: str, value: Any) -> float:
    """A finite number; CSV has it as text.

    Raises:
        FieldProblem: wrong_type, or nonfinite_score for NaN and infinities.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise FieldProblem(field, "wrong_type", f"must be a finite number, but is {shown(value)}") from None
    if not math.isfinite(number):
        raise FieldProblem(field, "nonfinite_score", f"must be a finite number, but is {shown(value)}")
    return number
