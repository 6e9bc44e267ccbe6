"""What the report's template shows besides the results themselves: metrics of stages, bars and prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from align.metric import metric_of
from align.records import ScoredCandidate
from align.report.answers import AnswerTable
from align.report.estimate import Estimate
from align.report.figure import evenly
from align.report.results import Results
from align.report.wording import number

PROMPTS_SHOWN = 24


def flattened(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Metrics by name, as texts in the same form as the terminal's; nested ones by a dotted name."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in flattened(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(text for item in value for _, text in flattened(item, prefix)))]
    return [(prefix, metric_of(prefix.rpartition(".")[2]).value_text(value))]


def metric_words(name: str) -> str:
    """What a person reads in place of a name that `flattened` made."""
    return " · ".join(metric_of(key).words for key in name.split("."))


class Scale(NamedTuple):
    """The values at both ends of a column's bars."""

    low: float
    high: float

    @classmethod
    def of(cls, estimates: Iterable[Estimate], *, with_zero: bool = False) -> Scale:
        """A scale on which all the intervals lie, with a margin."""
        ends = [end for estimate in estimates for end in estimate.ci95] + ([0.0] if with_zero else [])
        low, high = min(ends, default=0.0), max(ends, default=0.0)
        # Equal ends would make the scale's width zero, by which `place` divides.
        margin = 0.06 * (high - low) or 0.5
        return cls(low - margin, high + margin)

    def place(self, value: float) -> float:
        """Distance from the left end, in percent of the width."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def scales(results: Results, measure: str) -> tuple[Scale, Scale]:
    """The scales of a scorer's means, or of a pass@k, and of their differences to the baseline."""
    scores = [model.scores[measure] for model in results.models.values() if measure in model.scores]
    # Zero is drawn in every bar of a difference, so it must lie on the scale.
    return Scale.of(scores), Scale.of((score.delta for score in scores if score.delta is not None), with_zero=True)


@dataclass(frozen=True)
class PromptView:
    """One prompt with the completions of every row that has some."""

    answers: dict[str, list[ScoredCandidate]]
    """Candidates by row; a method is shown by its first seed."""
    best: dict[str, str | None]
    """The row whose first candidate has the highest score, by scorer; None if several share it."""


def prompt_views(results: Results, table: AnswerTable, count: int = PROMPTS_SHOWN) -> list[PromptView]:
    """Evenly spaced prompts, chosen by position only, so that nobody can pick flattering ones."""
    # Best of n has no completion of its own.
    models = {name: results.members(name)[0] for name in results.models_baseline_first if results.members(name)}
    views = []
    for prompt_id in evenly(np.array(table.prompt_ids), count):
        answers = {name: table.rows[model][prompt_id] for name, model in models.items()}
        views.append(PromptView(answers, {scorer: _only_best(answers, scorer) for scorer in table.scorers}))
    return views


def _only_best(answers: Mapping[str, Sequence[ScoredCandidate]], scorer: str) -> str | None:
    scores = {name: rows[0].scores[scorer] for name, rows in answers.items()}
    finite = {name: score for name, score in scores.items() if score is not None and math.isfinite(score)}
    top = [name for name, score in finite.items() if score == max(finite.values())]
    return top[0] if len(top) == 1 and len(scores) > 1 else None


def score_text(score: float | None) -> str:
    """A raw score of one completion."""
    return "none" if score is None or not math.isfinite(score) else number(score, 2)
