"""results.json: the numbers of a comparison, and the pure function that computes them from scored candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from align.config.base import StrictModel
from align.errors import DataError
from align.records import ScoredCandidate
from align.report.answers import AnswerTable, align_answers
from align.report.statistics import (
    BoolArray,
    FloatArray,
    Interval,
    distinct_n,
    mean_interval,
    paired_bootstrap,
    prompt_means,
    win_rate,
)

Answers = Mapping[str, Sequence[ScoredCandidate]]


class Estimate(StrictModel):
    """A mean over prompts and how sure we are of it."""

    mean: float
    """Mean over prompts."""
    ci95: tuple[float, float]
    """Ends of the 95 % bootstrap interval over prompts."""

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        return cls(mean=interval.mean, ci95=(interval.low, interval.high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


class ScoreResult(StrictModel):
    """One scorer's view of one model."""

    mean: float
    """Mean score over prompts, candidates of a prompt averaged first."""
    ci95: tuple[float, float]
    """Ends of the 95 % bootstrap interval over prompts."""
    delta: Estimate | None
    """Paired difference to the baseline, model minus baseline; null for the baseline itself."""
    nonfinite: int = Field(ge=0)
    """Prompts on which this model got no finite score. They are left out of this scorer's numbers for every model."""


class TokenResult(StrictModel):
    """Length of the completions in tokens, with the end-of-sequence token."""

    mean: float
    """Mean over prompts, candidates of a prompt averaged first."""
    ci95: tuple[float, float]
    """Ends of the 95 % bootstrap interval over prompts."""
    p50: float
    """Median over all completions."""
    p95: float
    """95th percentile over all completions."""


class ModelResult(StrictModel):
    """Everything measured about one model."""

    scores: dict[str, ScoreResult]
    """Score by scorer."""
    win_rate: dict[str, Estimate] | None
    """By scorer: share of candidate pairs this model wins against the baseline, a tie being half; null for the baseline."""
    kl_to_baseline: Estimate | None
    """KL divergence from the baseline per completion, in nats, estimated on this model's completions; null where not measured."""
    completion_tokens: TokenResult
    """How long the completions are."""
    eos_share: float = Field(ge=0, le=1)
    """Share of completions that ended by themselves rather than at the limit."""
    distinct_2: float | None
    """Distinct word pairs over all word pairs; null when no completion has two words."""
    retention_perplexity: float | None
    """Perplexity on the retention text, whose rise means forgetting; null where not measured."""
    train_seconds: float | None
    """Wall time of this model's own training stage; null where it was not trained here."""


class Ranking(StrictModel):
    """The models in order of one scorer's mean, and whether the first is really ahead of the second."""

    order: list[str] = Field(min_length=1)
    """Models, best first; ties keep the order in which the models were given."""
    prompts: int = Field(ge=1)
    """Prompts on which every model has a finite score: what this scorer's numbers are computed on."""
    best: str
    """The model with the highest mean."""
    runner_up: str | None
    """The model with the second highest mean; null when there is one model only."""
    difference: Estimate | None
    """Paired difference, best minus runner-up."""
    separated: bool
    """Whether the interval of that difference excludes zero."""


class EngineResult(StrictModel):
    """The engine that sampled every completion."""

    name: str
    """Name of the engine really used."""
    version: str
    """Its version."""


class Results(StrictModel):
    """A comparison of models on the same prompts with the same scorers. Intervals are paired bootstraps over prompts."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    recipe: str
    """Name of the recipe."""
    command: list[str]
    """The exact command that was run, argument by argument."""
    seed: int
    """Seed of the run, and of the bootstrap."""
    baseline: str
    """The model that differences, win rates and KL are against."""
    prompts: int = Field(ge=1)
    """Held-out prompts."""
    num_candidates: int = Field(ge=1)
    """Completions per prompt and model."""
    bootstrap_resamples: int = Field(ge=1)
    """Resamples of each bootstrap."""
    engine: EngineResult
    """What sampled the completions."""
    models: dict[str, ModelResult] = Field(min_length=1)
    """Numbers by model, in the order of the recipe."""
    ranking: dict[str, Ranking]
    """Order of the models by scorer."""

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers, in order."""
        return list(self.ranking)

    @property
    def models_baseline_first(self) -> list[str]:
        """Names of the models, the baseline before the others."""
        return [self.baseline, *(name for name in self.models if name != self.baseline)]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        """The results in a parsed results.json."""
        return cls.model_validate_json(json.dumps(value))

    def to_json(self) -> dict[str, Any]:
        """What results.json holds, for `align.store.atomic.write_json`."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class _Bootstrap:
    """The seed and size of every bootstrap of one comparison: one seed, so that all statistics see the same resamples."""

    seed: int
    resamples: int

    def mean(self, values: FloatArray) -> Interval:
        return mean_interval(values, seed=self.seed, resamples=self.resamples)

    def difference(self, first: FloatArray, second: FloatArray) -> Estimate:
        return Estimate.of(paired_bootstrap(first - second, seed=self.seed, resamples=self.resamples))


class _Measured(NamedTuple):
    """What was measured outside of the answers, by model; a model that is absent was not measured."""

    kl_to_baseline: Mapping[str, Mapping[str, float]]
    retention_perplexity: Mapping[str, float | None]
    train_seconds: Mapping[str, float | None]


def build_results(
    answers: Answers,
    *,
    baseline: str,
    recipe: str,
    command: Sequence[str],
    seed: int,
    engine_name: str,
    engine_version: str,
    bootstrap_resamples: int = 10_000,
    kl_to_baseline: Mapping[str, Mapping[str, float]] | None = None,
    retention_perplexity: Mapping[str, float | None] | None = None,
    train_seconds: Mapping[str, float | None] | None = None,
) -> Results:
    """Compute results.json from every model's scored candidates.

    Args:
        answers: model → its candidates, in any order; they are joined by `prompt_id` and `candidate_index`.
        baseline: one of the models.
        kl_to_baseline: model → prompt_id → nats per completion; a model that is absent was not measured.
        retention_perplexity: model → perplexity on the retention text.
        train_seconds: model → wall time of its training stage.
    Raises:
        DataError: if the models do not have the same prompts, candidates and scorers, or a scorer has no prompt on which
            every model got a finite score.
    """
    table = align_answers(answers)
    if baseline not in table.models:
        raise DataError(f"the baseline {baseline!r} is not among the compared models: {', '.join(table.models)}")
    bootstrap = _Bootstrap(seed, bootstrap_resamples)
    usable = {scorer: _usable_prompts(table, scorer) for scorer in table.scorers}
    measured = _Measured(kl_to_baseline or {}, retention_perplexity or {}, train_seconds or {})
    models = {model: _model_result(table, model, baseline, usable, measured, bootstrap) for model in table.models}
    return Results(
        recipe=recipe,
        command=list(command),
        seed=seed,
        baseline=baseline,
        prompts=len(table.prompt_ids),
        num_candidates=table.num_candidates,
        bootstrap_resamples=bootstrap_resamples,
        engine=EngineResult(name=engine_name, version=engine_version),
        models=models,
        ranking={scorer: _ranking(table, scorer, usable[scorer], bootstrap) for scorer in table.scorers},
    )


def _model_result(
    table: AnswerTable,
    model: str,
    baseline: str,
    usable: Mapping[str, BoolArray],
    measured: _Measured,
    bootstrap: _Bootstrap,
) -> ModelResult:
    rows = [row for candidates in table.rows[model].values() for row in candidates]
    return ModelResult(
        scores={scorer: _score_result(table, model, baseline, scorer, usable[scorer], bootstrap) for scorer in table.scorers},
        win_rate=None if model == baseline else _win_rates(table, model, baseline, usable, bootstrap),
        kl_to_baseline=_kl(table, model, baseline, measured.kl_to_baseline, bootstrap),
        completion_tokens=_tokens(table.tokens[model], bootstrap),
        eos_share=float(np.mean([row.finish_reason == "stop" for row in rows])),
        distinct_2=distinct_n(row.completion for row in rows),
        retention_perplexity=measured.retention_perplexity.get(model),
        train_seconds=measured.train_seconds.get(model),
    )


def _usable_prompts(table: AnswerTable, scorer: str) -> BoolArray:
    """[prompts], True where every model has a finite score: a pair needs both sides, and all models the same prompts."""
    finite = np.all([np.isfinite(prompt_means(table.scores[model][scorer])) for model in table.models], axis=0)
    if not finite.any():
        raise DataError(
            f"scorer {scorer!r}: on none of the {len(table.prompt_ids)} prompts did every model get a finite score",
            hint="Look at the scores in the comparison's answers, and mend or remove this scorer.",
        )
    return np.asarray(finite)


def _score_result(
    table: AnswerTable, model: str, baseline: str, scorer: str, usable: BoolArray, bootstrap: _Bootstrap
) -> ScoreResult:
    means = prompt_means(table.scores[model][scorer])
    own = bootstrap.mean(means[usable])
    against = prompt_means(table.scores[baseline][scorer])
    return ScoreResult(
        mean=own.mean,
        ci95=(own.low, own.high),
        delta=None if model == baseline else bootstrap.difference(means[usable], against[usable]),
        nonfinite=int((~np.isfinite(means)).sum()),
    )


def _win_rates(
    table: AnswerTable, model: str, baseline: str, usable: Mapping[str, BoolArray], bootstrap: _Bootstrap
) -> dict[str, Estimate]:
    rates = {}
    for scorer in table.scorers:
        per_prompt = win_rate(table.scores[model][scorer], table.scores[baseline][scorer])
        rates[scorer] = Estimate.of(bootstrap.mean(per_prompt[usable[scorer]]))
    return rates


def _kl(
    table: AnswerTable, model: str, baseline: str, kl: Mapping[str, Mapping[str, float]], bootstrap: _Bootstrap
) -> Estimate | None:
    if model == baseline or model not in kl:
        return None
    missing = [prompt_id for prompt_id in table.prompt_ids if not np.isfinite(kl[model].get(prompt_id, np.nan))]
    if missing:
        raise DataError(f"model {model!r}: no finite KL value for {len(missing)} prompts, the first is {missing[0]!r}")
    return Estimate.of(bootstrap.mean(np.array([kl[model][prompt_id] for prompt_id in table.prompt_ids])))


def _tokens(tokens: FloatArray, bootstrap: _Bootstrap) -> TokenResult:
    mean, low, high = bootstrap.mean(tokens.mean(axis=1))
    p50, p95 = (float(value) for value in np.percentile(tokens, [50, 95]))
    return TokenResult(mean=mean, ci95=(low, high), p50=p50, p95=p95)


def _ranking(table: AnswerTable, scorer: str, usable: BoolArray, bootstrap: _Bootstrap) -> Ranking:
    means = {model: prompt_means(table.scores[model][scorer])[usable] for model in table.models}
    order = sorted(means, key=lambda model: -means[model].mean())
    runner_up = order[1] if len(order) > 1 else None
    difference = None if runner_up is None else bootstrap.difference(means[order[0]], means[runner_up])
    return Ranking(
        order=order,
        prompts=int(usable.sum()),
        best=order[0],
        runner_up=runner_up,
        difference=difference,
        separated=difference is not None and difference.excludes_zero,
    )
