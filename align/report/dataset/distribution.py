"""How whole numbers (lengths) are distributed over any number of rows, in memory that depends on their size alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from align.report.statistics import FloatArray


class Distribution:
    """Counts of lengths. Exact: a file of millions of rows has no more different lengths than its longest text has characters."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self.counts: Counter[int] = Counter(values)

    def add(self, value: int) -> None:
        self.counts[value] += 1

    @property
    def rows(self) -> int:
        """How many lengths were counted."""
        return self.counts.total()

    @property
    def mean(self) -> float:
        """Arithmetic mean; 0 where nothing was counted."""
        return sum(value * count for value, count in self.counts.items()) / max(1, self.rows)

    @property
    def maximum(self) -> int:
        """The largest; 0 where nothing was counted."""
        return max(self.counts, default=0)

    def percentile(self, percent: float) -> int:
        """The smallest length that at least `percent` of the rows do not exceed; 0 where nothing was counted."""
        values = sorted(self.counts)
        if not values:
            return 0
        reached = np.cumsum([self.counts[value] for value in values])
        # Half a row of slack: 0.95 * 20 is 19.000000000000004 in binary.
        place = int(np.searchsorted(reached, percent / 100 * reached[-1] - 0.5 / reached[-1]))
        return values[min(place, len(values) - 1)]

    def over(self, limit: int) -> int:
        """Rows whose length exceeds `limit`."""
        return sum(count for value, count in self.counts.items() if value > limit)

    def histogram(self, edges: FloatArray) -> FloatArray:
        """Rows between each two edges; whatever lies beyond the last one is counted with the last."""
        values = np.array(list(self.counts), dtype=np.float64)
        weights = np.array(list(self.counts.values()), dtype=np.float64)
        # NumPy's last bin includes its right edge, so what lies beyond can be moved onto it.
        return np.histogram(np.minimum(values, edges[-1]), edges, weights=weights)[0]

    def as_json(self) -> dict[str, Any]:
        """`rows`, `mean`, `median`, `p95`, `max`."""
        return {
            "rows": self.rows,
            "mean": self.mean,
            "median": self.percentile(50),
            "p95": self.percentile(95),
            "max": self.maximum,
        }


def shared_edges(distributions: Iterable[Distribution], bins: int) -> FloatArray:
    """Edges for drawing several distributions over each other: `bins` of equal width or fewer, each a whole number wide.

    They end at the largest 99.5th percentile: one text of 100,000 characters would leave a drawing with a single bar.
    """
    end = max((one.percentile(99.5) for one in distributions), default=0)
    # Whole numbers: with broken widths, some bins would hold more different lengths than others and show false peaks.
    step = max(1, -(-(end + 1) // bins))
    return np.arange(-0.5, end + step, step, dtype=np.float64)
