"""Numbers about the rows that a selection gave, added up over tasks to the same bits however the rows were cut."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


class Tally:
    """Values and counts of one task."""

    def __init__(self) -> None:
        self.values: defaultdict[str, list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """What `Totals` needs of it, as JSON."""
        series = {
            name: {"sum": exact_sum(values), "number": len(values), "least": _finite(min(values))}
            for name, values in self.values.items()
        }
        return {"series": series, "counts": dict(self.counts)}


class Totals:
    """The tallies of all tasks together."""

    def __init__(self, facts: Sequence[Mapping[str, Any]]) -> None:
        self.counts: Counter[str] = Counter()
        self._series: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for fact in facts:
            self.counts.update(fact["counts"])
            for name, series in fact["series"].items():
                self._series[name].append(series)

    def mean(self, name: str) -> float | None:
        """Mean of all values, rounded once; there must be one. None where the sum is beyond the range of numbers."""
        sums = [series["sum"] for series in self._series[name]]
        if any(parts is None for parts in sums):
            return None
        try:
            return math.fsum(part for parts in sums for part in parts) / self.number(name)
        except OverflowError:
            return None

    def number(self, name: str) -> int:
        return sum(series["number"] for series in self._series[name])

    def least(self, name: str) -> float | None:
        """The lowest value; None where it is an infinity."""
        least = [series["least"] for series in self._series[name]]
        return min((value for value in least if value is not None), default=None)


def exact_sum(values: Sequence[float]) -> list[float] | None:
    """A few numbers whose sum is exactly that of `values`, so that sums of sums depend on no grouping.

    None where the values hold an infinity, or their sum is beyond the range of numbers.
    """
    parts: list[float] = []
    try:
        while (rest := math.fsum([*values, *(-part for part in parts)])) != 0:
            if not math.isfinite(rest):
                return None
            parts.append(rest)
    except OverflowError:
        return None
    return parts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
