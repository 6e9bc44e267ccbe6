"""Means and differences with what is known about their certainty, as results.json has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import Field

from align.config.base import StrictModel
from align.report.statistics import CONFIDENCE, FloatArray, Interval, holm, standardized_difference

Bootstrap = Callable[..., Interval]
"""`seeded_bootstrap` with one seed and size, so that all statistics of a comparison see the same resamples."""


class Estimate(StrictModel):
    """A mean over prompts (of a method: over its seeds and prompts) and how sure we are of it."""

    mean: float
    """Mean over prompts, candidates of a prompt averaged first."""
    ci95: tuple[float, float]
    """Ends of the 95 % bootstrap interval over prompts, of a method with several seeds over seeds and prompts."""

    @classmethod
    def of(cls, interval: Interval, **fields: Any) -> Self:
        """`fields` are those that a subclass adds."""
        return cls(mean=interval.mean, ci95=(interval.low, interval.high), **fields)

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


class Difference(Estimate):
    """A paired difference of two rows on the same prompts."""

    p: float | None = Field(default=None, ge=0, le=1)
    """Two-sided bootstrap p-value of no difference, by the same resamples as the interval; not corrected for the number of
    comparisons."""

    standardized: float | None = None
    """Mean over the standard deviation of the prompts' differences, seeds averaged (Cohen's d_z); null where all are equal."""

    @classmethod
    def between(cls, first: FloatArray, second: FloatArray, bootstrap: Bootstrap) -> Difference:
        """First minus second; each is [seeds, prompts], the prompts in the same order."""
        interval = bootstrap(first, second)
        effect = standardized_difference(first.mean(axis=0) - second.mean(axis=0))
        return cls.of(interval, p=interval.p, standardized=effect)

    def is_separated(self, corrected_p: float | None = None) -> bool:
        """Whether the interval excludes zero, and so does the p-value that was corrected for other comparisons, if given."""
        return self.excludes_zero and (corrected_p is None or corrected_p < 1 - CONFIDENCE)


def corrected(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """P-values by name after Holm's correction; empty for a single comparison, which needs none."""
    known = {name: p for name, p in p_values.items() if p is not None}
    return holm(known) if len(known) > 1 else {}
