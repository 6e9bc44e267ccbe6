"""What a row says about its completions: the better by label, ranking, scores or ranks, or whether a single one is good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.rows.problem import FieldProblem, shown

_ENDINGS = {"12": ("1", "2"), "01": ("0", "1")}
_TIES = ("tie", "tie (bothbad)")
_VERDICTS = {
    True: ("true", "1", "yes", "good", "desirable", "positive", "like", "thumbs_up", "thumbs up", "up", "👍"),
    False: ("false", "0", "no", "bad", "undesirable", "negative", "dislike", "thumbs_down", "thumbs down", "down", "👎"),
}


@dataclass(frozen=True)
class Order:
    """The best of several completions."""

    best: int
    """Its index in the list; of several equally good ones, the first."""
    ties: frozenset[int]
    """Indexes of the others that are as good."""
    scores: Sequence[float] | None
    """Score by index, where the row has scores."""

    def score(self, index: int) -> float | None:
        """The completion's score, if it has one."""
        return None if self.scores is None else self.scores[index]


def is_first_preferred(label: Any, first: str, second: str) -> bool:
    """Whether a label prefers the completion of column `first` to that of column `second`.

    Labels follow the columns' names: 1 and 2 for `output_1` and `output_2`, 0 and 1 for `response_0` and `response_1`,
    otherwise A and B (or model_a and model_b), in upper or lower case. A column's own name always means that column.

    Raises:
        FieldProblem: tie, or wrong_type for a label that means neither.
    """
    label_1, label_2 = _ENDINGS.get((first[-1:] + second[-1:]).lower(), ("a", "b"))
    names = {True: {label_1, f"model_{label_1}", first.lower()}, False: {label_2, f"model_{label_2}", second.lower()}}
    # Parquet and pandas turn a column of whole numbers with a gap into floats.
    value = int(label) if isinstance(label, float) and label.is_integer() else label
    text = str(value).strip().lower() if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if text in _TIES:
        raise FieldProblem("label", "tie", f"prefers neither completion: {shown(label)}")
    for is_first, values in names.items():
        if text in values:
            return is_first
    raise FieldProblem(
        "label",
        "wrong_type",
        f"must be {label_1.upper()} for {first!r} or {label_2.upper()} for {second!r}, or tie, but is {shown(label)}",
    )


def is_desirable(label: Any) -> bool:
    """Whether a label calls a completion good.

    Raises:
        FieldProblem: wrong_type for a label that says neither.
    """
    # Parquet and pandas turn a column of whole numbers with a gap into floats.
    value = int(label) if isinstance(label, float) and label.is_integer() else label
    text = str(value).strip().lower() if isinstance(value, (str, int)) else None
    for verdict, words in _VERDICTS.items():
        if text in words:
            return verdict
    raise FieldProblem(
        "desirable", "wrong_type", f"must be true or false (or 1 or 0, good or bad, 👍 or 👎), but is {shown(label)}"
    )


def best_of(field: str, values: Any, scores: Any, ranks: Any) -> Order:
    """Finds the best completion in the list `values`.

    Args:
        field: name of the list in messages.
        scores: one number per completion, higher is better; or None.
        ranks: one number per completion, lower is better; or None. Without both, the list is ordered, best first.
    Raises:
        FieldProblem: wrong_type for anything but a list of at least two completions, or of as many numbers; nonfinite_score.
    """
    if not isinstance(values, list) or len(values) < 2:
        raise FieldProblem(field, "wrong_type", f"must be a list of at least two completions, but is {shown(values)}")
    if scores is None and ranks is None:
        return Order(0, frozenset(), None)
    numbers = _numbers("scores" if ranks is None else "ranks", scores if ranks is None else ranks, len(values))
    top = max(numbers) if ranks is None else min(numbers)
    # Equally good completions make no pair, since a preference between them would be invented.
    best, *ties = (index for index, number in enumerate(numbers) if number == top)
    return Order(best, frozenset(ties), numbers if ranks is None else None)


def _numbers(field: str, values: Any, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise FieldProblem(field, "wrong_type", f"must be a list of {count} numbers, one per completion, but is {shown(values)}")
    return [number_of(f"{field} {position}", value) for position, value in enumerate(values, start=1)]


def number_of(field: str, value: Any) -> float:
    """A finite number. CSV files hold numbers as text.

    Raises:
        FieldProblem: wrong_type, or nonfinite_score for NaN and infinities.
    """
    try:
        # A bool is an int in Python, and float() takes it.
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise FieldProblem(field, "wrong_type", f"must be a finite number, but is {shown(value)}") from None
    if not math.isfinite(number):
        raise FieldProblem(field, "nonfinite_score", f"must be a finite number, but is {shown(value)}")
    return number
