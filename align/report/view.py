"""The data of the report's template: every number as text, every bar in percent. The template only does the layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from align.config.base import StrictModel
from align.records import Message, ScoredCandidate
from align.report.answers import AnswerTable
from align.report.results import ModelResult, Results
from align.report.style import row_styles
from align.report.table import NOTHING, behaviour_columns, kl_text, row_remark
from align.report.wording import (
    AnyEstimate,
    interval_text,
    mark_of,
    number,
    percent_text,
    score_decimals,
    seconds_text,
)
from align.store.artifact import Artifact

PROMPTS_SHOWN = 24


class StageSummary(StrictModel):
    """What one stage did, for the report."""

    name: str
    """What the recipe calls it."""
    type: str
    """Stage type, or `input`."""
    seconds: float | None = None
    """Wall time."""
    rows_in: int | None = None
    """Rows read."""
    rows_out: int | None = None
    """Rows written."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Rows that left, by reason."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Numbers of its manifest."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Libraries and engines really used."""
    fingerprint: str = ""
    """Names the result by everything it depends on."""
    peak_memory_bytes: int | None = None
    """Largest resident set of its process."""
    seed: int | None = None
    """Seed of the run that made it."""

    @classmethod
    def of(cls, artifact: Artifact) -> StageSummary:
        """The summary in an artifact's manifest."""
        manifest = artifact.manifest
        # Fields of the same name mean the same in both, so a new one needs no line here.
        shared = cls.model_fields.keys() & type(manifest).model_fields.keys()
        values = {field: getattr(manifest, field) for field in shared}
        values["peak_memory_bytes"] = manifest.peak_memory_bytes or None
        return cls(name=artifact.name, type=manifest.stage, **values)

    @property
    def time(self) -> str:
        return "–" if self.seconds is None else seconds_text(self.seconds)

    @property
    def memory(self) -> str:
        return "–" if self.peak_memory_bytes is None else f"{self.peak_memory_bytes / 2**30:.1f} GiB"

    @property
    def flat_metrics(self) -> list[tuple[str, str]]:
        """Metrics as texts, nested ones by a dotted name."""
        return _flatten("", self.metrics)


def _flatten(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flatten(f"{prefix}.{key}" if prefix else str(key), item)]
    if isinstance(value, float):
        return [(prefix, f"{value:.5g}")]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(text for item in value for _, text in _flatten("", item)))]
    return [(prefix, "–" if value is None else str(value))]


class IntervalBar(NamedTuple):
    """An interval on its column's scale, in percent of the width."""

    left: float
    width: float
    point: float
    zero: float | None
    """Where zero is, for differences."""


@dataclass(frozen=True)
class EstimateView:
    """A mean, its interval, and a bar."""

    mean: str
    interval: str
    bar: IntervalBar


@dataclass(frozen=True)
class ScorerCell:
    """One scorer's view of one model."""

    score: EstimateView
    delta: EstimateView | None
    mark: str
    wins: str | None
    is_best: bool


@dataclass(frozen=True)
class ModelRow:
    """One row of the table."""

    name: str
    variable: str
    hollow: bool
    """Whether its swatch is an outline: best of n."""
    remark: str
    scorers: list[ScorerCell]
    behaviour: list[str]


def model_rows(results: Results) -> list[ModelRow]:
    """The rows of the table, the baseline first."""
    behaviour = behaviour_columns(results)
    cells = [_scorer_cells(results, scorer) for scorer in results.scorers]
    styles = row_styles(results)
    return [
        ModelRow(
            name=name,
            variable=styles[name].variable,
            hollow=styles[name].hollow,
            remark=row_remark(results, name),
            scorers=[column[index] for column in cells],
            behaviour=[column.cells[index].plain for column in behaviour],
        )
        for index, name in enumerate(results.models_baseline_first)
    ]


def behaviour_headers(results: Results) -> list[str]:
    """Headers of the columns beside the scorers'."""
    return [column.header.replace("\n", " ") for column in behaviour_columns(results)]


def _scorer_cells(results: Results, scorer: str) -> list[ScorerCell]:
    names = results.models_baseline_first
    scores = {name: results.models[name].scores[scorer] for name in names}
    deltas = {name: score.delta for name, score in scores.items()}
    decimals = score_decimals(results, scorer)
    score_scale = _scale(list(scores.values()))
    known = [delta for delta in deltas.values() if delta is not None]
    # Zero is drawn in every bar of a difference, so it must lie on the scale.
    delta_scale = _scale(known, with_zero=True)
    cells = []
    for name in names:
        delta, wins = deltas[name], results.models[name].win_rate
        cells.append(
            ScorerCell(
                score=_estimate_view(scores[name], decimals, score_scale),
                delta=None if delta is None else _estimate_view(delta, decimals, delta_scale, difference=True),
                mark="" if delta is None else mark_of(delta),
                wins=None if wins is None else percent_text(wins[scorer]),
                # With one model there is nothing to be best of.
                is_best=len(results.trained_rows) > 1 and name == results.ranking[scorer].best,
            )
        )
    return cells


def _scale(estimates: Sequence[AnyEstimate], *, with_zero: bool = False) -> tuple[float, float]:
    ends = [end for estimate in estimates for end in estimate.ci95] + ([0.0] if with_zero else [])
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    # Equal ends would make the scale's width zero, by which `place` divides.
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _estimate_view(estimate: AnyEstimate, decimals: int, scale: tuple[float, float], *, difference: bool = False) -> EstimateView:
    def place(value: float) -> float:
        return round(100 * (value - scale[0]) / (scale[1] - scale[0]), 2)

    left, right = (place(end) for end in estimate.ci95)
    bar = IntervalBar(left, round(right - left, 2), place(estimate.mean), place(0.0) if difference else None)
    return EstimateView(
        number(estimate.mean, decimals, signed=difference), interval_text(estimate, decimals, signed=difference), bar
    )


@dataclass(frozen=True)
class SeedRow:
    """One seed of a method, by itself."""

    method: str
    model: str
    variable: str
    scores: list[tuple[str, str]]
    """Mean and difference to the baseline, by scorer."""
    kl: str
    tokens: str


def seed_rows(results: Results) -> list[SeedRow]:
    """Every model of every method with several seeds, to show their spread."""
    styles = row_styles(results)
    return [
        SeedRow(
            method=method,
            model=model,
            variable=styles[method].variable,
            scores=[_seed_score(results, one, scorer) for scorer in results.scorers],
            kl=kl_text(one) or NOTHING,
            tokens=number(one.completion_tokens.mean, 1),
        )
        for method in results.several_seeds
        for model, one in (results.models[method].replicates or {}).items()
    ]


def _seed_score(results: Results, one: ModelResult, scorer: str) -> tuple[str, str]:
    score, decimals = one.scores[scorer], score_decimals(results, scorer)
    delta = NOTHING if score.delta is None else number(score.delta.mean, decimals, signed=True)
    return number(score.mean, decimals), delta


@dataclass(frozen=True)
class AnswerView:
    """One model's answer to one prompt."""

    model: str
    variable: str
    completion: str
    scores: list[tuple[str, str, bool]]
    """Scorer, score, and whether it is this prompt's highest."""
    tokens: int
    was_cut: bool
    is_best: bool
    more: list[ScoredCandidate]
    """The model's other candidates."""


@dataclass(frozen=True)
class PromptView:
    """One prompt with every model's answer."""

    prompt_id: str
    messages: list[Message]
    reference: str | None
    answers: list[AnswerView]


def prompt_views(results: Results, table: AnswerTable, *, primary_scorer: str, count: int = PROMPTS_SHOWN) -> list[PromptView]:
    """Evenly spaced prompts, chosen by position only, so that nobody can pick flattering ones."""
    chosen = np.unique(np.linspace(0, len(table.prompt_ids) - 1, min(count, len(table.prompt_ids))).round().astype(int))
    return [_prompt_view(results, table, table.prompt_ids[index], primary_scorer) for index in chosen]


def _prompt_view(results: Results, table: AnswerTable, prompt_id: str, primary_scorer: str) -> PromptView:
    # A method is shown by its first seed; best of n has no completion of its own.
    models = {name: results.members(name)[0] for name in results.models_baseline_first if results.members(name)}
    styles = row_styles(results)
    shown = {name: table.rows[model][prompt_id][0] for name, model in models.items()}
    best = {scorer: _only_best({name: row.scores[scorer] for name, row in shown.items()}) for scorer in table.scorers}
    answers = []
    for name, row in shown.items():
        answers.append(
            AnswerView(
                model=name if models[name] == name else f"{name} ({models[name]})",
                variable=styles[name].variable,
                completion=row.completion,
                scores=[(scorer, score_text(row.scores[scorer]), best[scorer] == name) for scorer in table.scorers],
                tokens=row.completion_tokens,
                was_cut=row.finish_reason == "length",
                is_best=best[primary_scorer] == name,
                more=table.rows[models[name]][prompt_id][1:],
            )
        )
    example = shown[results.baseline]
    return PromptView(prompt_id, example.prompt, example.reference, answers)


def _only_best(scores: Mapping[str, float | None]) -> str | None:
    """The model with the highest score; None if several share it."""
    finite = {name: score for name, score in scores.items() if score is not None and math.isfinite(score)}
    top = [name for name, score in finite.items() if score == max(finite.values())]
    return top[0] if len(top) == 1 and len(scores) > 1 else None


def score_text(score: float | None) -> str:
    """A raw score of one completion."""
    return "none" if score is None or not math.isfinite(score) else number(score, 2)
