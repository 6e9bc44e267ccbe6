"""Which model is the best by one measure, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from align.config.base import StrictModel
from align.report.estimate import Bootstrap, Difference, corrected
from align.report.rows import Row
from align.report.statistics import BoolArray


class Ranking(StrictModel):
    """Models and methods in order of one scorer's mean or of a pass@k, and whether the first is really ahead of the second.

    Best of n is not ranked among them: it needs no training, but n completions for every answer.
    """

    order: list[str] = Field(min_length=1)
    """Models and methods, best first; ties keep the order in which the models were given."""
    prompts: int = Field(ge=1)
    """Prompts on which every model and best of n have a finite score: what these numbers are computed on."""
    best: str
    """The model with the highest mean."""
    runner_up: str | None
    """The model with the second highest mean; null when there is one model only."""
    difference: Difference | None
    """Paired difference, best minus runner-up."""
    separated: bool
    """Whether the interval of that difference excludes zero, and its p-value in `p_to_best` is below 0.05."""
    against_best_of: dict[str, Difference] = Field(default_factory=dict)
    """Paired difference, best minus each row of best of n; empty without such rows."""
    p_to_baseline: dict[str, float] = Field(default_factory=dict)
    """By row: p-value of its difference to the baseline after Holm's correction for all rows; empty for a single difference."""
    p_to_best: dict[str, float] = Field(default_factory=dict)
    """By row: p-value of best minus this row, after Holm's correction for all other models, for best of n for its rows."""


def rank_rows(
    rows: Mapping[str, Row], deltas: Mapping[str, Difference | None], measure: str, usable: BoolArray, bootstrap: Bootstrap
) -> Ranking:
    """Rank the models and methods by one measure.

    Args:
        rows: those that have the measure.
        deltas: by row, its difference to the baseline; None for the baseline itself.
        measure: a scorer, or a pass@k by its name.
        usable: [prompts], True where every row has a finite value.
    """
    values = {name: row.scores[measure][:, usable] for name, row in rows.items()}
    # Seeds are averaged first, as everywhere, so that one seed gives the same mean to the last digit.
    order = sorted((name for name, row in rows.items() if not row.best_of), key=lambda name: -values[name].mean(axis=0).mean())
    best, runner_up = order[0], order[1] if len(order) > 1 else None
    to_best = {name: Difference.between(values[best], values[name], bootstrap) for name in rows if name != best}
    of_models = corrected({name: to_best[name].p for name in order[1:]})
    against_best_of = {name: to_best[name] for name, row in rows.items() if row.best_of}
    return Ranking(
        order=order,
        prompts=int(usable.sum()),
        best=best,
        runner_up=runner_up,
        difference=None if runner_up is None else to_best[runner_up],
        separated=runner_up is not None and to_best[runner_up].is_separated(of_models.get(runner_up)),
        against_best_of=against_best_of,
        p_to_baseline=corrected({name: delta.p for name, delta in deltas.items() if delta is not None}),
        p_to_best=of_models | corrected({name: difference.p for name, difference in against_best_of.items()}),
    )
