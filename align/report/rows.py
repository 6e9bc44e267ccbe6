"""The rows of the comparison as numbers per seed and prompt, before any statistics.

A row is a model, a method (models that differ only in the training seed), or best of n from the baseline. All three become the
same arrays, so one set of statistics serves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from pydantic import Field

from align.config.base import StrictModel
from align.errors import DataError
from align.report.answers import AnswerTable, align_answers
from align.report.best_of import BestOfPool, best_of_probabilities, expectation
from align.report.collapse import FrequentSentence, compression_ratio, distinct_share, frequent_sentence, repetition
from align.report.cost import Cost, answer_cost, mean_cost
from align.report.pass_at import PassAt, pass_at_k
from align.report.statistics import FloatArray, distinct_n, pair_outcomes, prompt_means, win_rate

TOKEN_PERCENTILES = (50, 95)


class Trained(NamedTuple):
    """What training a model needed, besides time."""

    parameters: int | None
    """Number of trained parameters; None where the stage does not report it."""
    memory_bytes: int | None
    """Largest resident set of the stage's process."""


class Measured(NamedTuple):
    """What was measured outside of the answers, by model; a model that is absent was not measured."""

    kl_to_baseline: Mapping[str, Mapping[str, float]]
    """Model → prompt id → nats per completion."""
    retention_perplexity: Mapping[str, float | None]
    train_seconds: Mapping[str, float | None]
    trained: Mapping[str, Trained]
    rules: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType({})
    """Model → scorer made of rules → rule → share of the answers that pass it."""
    update_kl: Mapping[str, float] = MappingProxyType({})
    """Model → the largest KL of an update of its training, nats per token, where its method has updates with a trust region."""
    costs: Mapping[str, Cost] = MappingProxyType({})


class BestOfResult(StrictModel):
    """What best of n was taken from. Its numbers are expectations over all subsets of n of the candidates."""

    n: int = Field(ge=1)
    """Completions drawn per prompt, of which the best is kept."""
    num_candidates: int = Field(ge=1)
    """Candidates per prompt that they are drawn from."""
    scorer: str
    """The scorer that chooses."""
    never_chosen: int = Field(ge=0)
    """Candidates, over all prompts, without a finite score by that scorer: they are never chosen."""


@dataclass(frozen=True)
class Pairs:
    """Every pair of a completion and one of the baseline's for the same prompt. Arrays are [seeds, prompts, pairs]."""

    outcomes: dict[str, FloatArray]
    """By scorer: 1 won, 0.5 a tie, 0 lost, NaN where a score is missing."""
    lengths: FloatArray
    """Characters of the completion minus those of the baseline's."""
    weights: FloatArray | None = None
    """How likely each completion is the row's; None where all are alike."""


@dataclass(frozen=True)
class Row:
    """One row: a model and best of n have one seed, a method has one or more. Arrays are [seeds, prompts]."""

    scores: dict[str, FloatArray]
    """By scorer, candidates averaged; NaN where there is no score. Of models and methods also pass@k, by its name."""
    wins: dict[str, FloatArray] | None
    """By scorer: share of pairs won against the baseline; None for the baseline itself."""
    pairs: Pairs | None
    """What `wins` are the means of; None for the baseline itself."""
    kl: FloatArray | None
    """Nats per completion; None where not measured."""
    tokens: FloatArray
    """Completion tokens, candidates averaged; NaN where best of n has nothing to choose from."""
    token_percentiles: tuple[float, float]
    """50th and 95th percentile over all completions."""
    eos_share: float
    distinct_2: float | None
    distinct_1: float | None
    compression: float | None
    repetition: float | None
    distinct_answers: float | None
    frequent: FrequentSentence | None
    retention_perplexity: float | None
    train_seconds: float | None
    trained: Trained | None = None
    cost: Cost | None = None
    rules: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Scorer made of rules → rule → share of the answers that pass it; empty where not measured."""
    update_kl: float | None = None
    """The largest KL of an update of its training, nats per token."""
    disagreement: dict[str, FloatArray] = field(default_factory=dict)
    """By scorer that is an ensemble: standard deviation of its members, candidates averaged; NaN where there is no score."""
    seeds: dict[str, Row] = field(default_factory=dict)
    """Of a method: its models as rows of their own, by name."""
    best_of: BestOfResult | None = None


def make_rows(
    table: AnswerTable,
    baseline: str,
    measured: Measured,
    methods: Mapping[str, Sequence[str]],
    pool: BestOfPool | None,
    pass_at: PassAt | None = None,
) -> dict[str, Row]:
    """Every row by name: models in the order given, a method in the place of its first model, best of n after the baseline.

    Raises:
        DataError: if a method has no models, one that is not compared, the baseline, or one that another method has; if two
            rows have one name; if the candidates of best of n do not fit the other answers.
    """
    method_of = _method_of(table, baseline, methods)
    best_of = _best_of_rows(table, baseline, pool) if pool else {}
    names = [*(model for model in table.models if model not in method_of), *methods, *best_of]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two rows of the comparison would be called {twice[0]!r}", hint="Give the method another name.")
    rows: dict[str, Row] = {}
    for model in table.models:
        name = method_of.get(model, model)
        if model not in method_of:
            rows[name] = _model_row(table, model, baseline, measured, pass_at)
        elif name not in rows:
            rows[name] = _method_row({one: _model_row(table, one, baseline, measured, pass_at) for one in methods[name]})
        if model == baseline:
            rows.update(best_of)
    return rows


def best_of_name(baseline: str, n: int) -> str:
    """What a row of best of n is called."""
    return f"{baseline} best of {n}"


def _method_of(table: AnswerTable, baseline: str, methods: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Method by model."""
    method_of: dict[str, str] = {}
    for name, members in methods.items():
        if not members:
            raise DataError(f"method {name!r} has no models")
        for member in members:
            if member not in table.models:
                raise DataError(f"method {name!r}: {member!r} is not among the compared models: {', '.join(table.models)}")
            if member == baseline:
                raise DataError(f"method {name!r}: {member!r} is the baseline, which is a row of its own")
            if member in method_of:
                raise DataError(f"model {member!r} is given twice, in method {method_of[member]!r} and in {name!r}")
            method_of[member] = name
    return method_of


def _model_row(table: AnswerTable, model: str, baseline: str, measured: Measured, pass_at: PassAt | None) -> Row:
    candidates = [row for group in table.rows[model].values() for row in group]
    wins = {scorer: win_rate(table.scores[model][scorer], table.scores[baseline][scorer])[None] for scorer in table.scorers}
    outcomes = {scorer: pair_outcomes(table.scores[model][scorer], table.scores[baseline][scorer]) for scorer in table.scorers}
    lengths = _longer(_characters(table, model), _characters(table, baseline))
    pairs = Pairs({scorer: _flat(values) for scorer, values in outcomes.items()}, _flat(lengths))
    p50, p95 = (float(value) for value in np.percentile(table.tokens[model], TOKEN_PERCENTILES))
    return Row(
        scores={scorer: prompt_means(table.scores[model][scorer])[None] for scorer in table.scorers}
        | _passes(table, model, pass_at),
        wins=None if model == baseline else wins,
        pairs=None if model == baseline else pairs,
        kl=None if model == baseline else _kl(table, model, measured.kl_to_baseline),
        tokens=table.tokens[model].mean(axis=1)[None],
        token_percentiles=(p50, p95),
        eos_share=float(np.mean([row.finish_reason == "stop" for row in candidates])),
        distinct_2=distinct_n(row.completion for row in candidates),
        distinct_1=distinct_n((row.completion for row in candidates), 1),
        compression=compression_ratio(row.completion for row in candidates),
        repetition=repetition(row.completion for row in candidates),
        distinct_answers=distinct_share(row.completion for row in candidates),
        frequent=frequent_sentence(row.completion for row in candidates),
        retention_perplexity=measured.retention_perplexity.get(model),
        train_seconds=measured.train_seconds.get(model),
        trained=measured.trained.get(model),
        cost=measured.costs.get(model),
        rules=measured.rules.get(model, {}),
        update_kl=measured.update_kl.get(model),
        disagreement={scorer: prompt_means(values)[None] for scorer, values in table.disagreement[model].items()},
    )


def _passes(table: AnswerTable, model: str, pass_at: PassAt | None) -> dict[str, FloatArray]:
    """pass@k by its name, [1, prompts]."""
    if pass_at is None:
        return {}
    scores = table.scores[model][pass_at.scorer]
    return {name: pass_at_k(scores, k, pass_score=pass_at.score)[None] for name, k in pass_at.names.items()}


def _characters(table: AnswerTable, model: str) -> FloatArray:
    """[prompts, candidates]: characters, which do not depend on a tokenizer as tokens do."""
    return np.array(
        [[len(row.completion) for row in table.rows[model][prompt_id]] for prompt_id in table.prompt_ids], dtype=float
    )


def _longer(lengths: FloatArray, baseline: FloatArray) -> FloatArray:
    """[prompts, candidates of the row, candidates of the baseline]: by how much the first is longer."""
    return lengths[:, :, None] - baseline[:, None, :]


def _flat(values: FloatArray) -> FloatArray:
    """[1, prompts, pairs] of [prompts, candidates, candidates]."""
    return values.reshape(1, len(values), -1)


def _kl(table: AnswerTable, model: str, kl: Mapping[str, Mapping[str, float]]) -> FloatArray | None:
    if model not in kl:
        return None
    missing = [prompt_id for prompt_id in table.prompt_ids if not np.isfinite(kl[model].get(prompt_id, np.nan))]
    if missing:
        raise DataError(f"model {model!r}: no finite KL value for {len(missing)} prompts, the first is {missing[0]!r}")
    return np.array([[kl[model][prompt_id] for prompt_id in table.prompt_ids]])


def _method_row(seeds: dict[str, Row]) -> Row:
    """The seeds' arrays, stacked. A number per model is the mean over the seeds; None if one seed lacks it."""
    rows = list(seeds.values())
    kls = [row.kl for row in rows if row.kl is not None]
    wins = [row.wins for row in rows if row.wins is not None]
    pairs = [row.pairs for row in rows if row.pairs is not None]
    percentiles = np.mean([row.token_percentiles for row in rows], axis=0)
    return Row(
        scores={scorer: np.concatenate([row.scores[scorer] for row in rows]) for scorer in rows[0].scores},
        wins={scorer: np.concatenate([of_seed[scorer] for of_seed in wins]) for scorer in wins[0]},
        pairs=Pairs(
            {scorer: np.concatenate([of_seed.outcomes[scorer] for of_seed in pairs]) for scorer in pairs[0].outcomes},
            np.concatenate([of_seed.lengths for of_seed in pairs]),
        ),
        # All seeds or none: a mean over some of them would not belong to the method.
        kl=np.concatenate(kls) if len(kls) == len(rows) else None,
        tokens=np.concatenate([row.tokens for row in rows]),
        token_percentiles=(float(percentiles[0]), float(percentiles[1])),
        eos_share=float(np.mean([row.eos_share for row in rows])),
        distinct_2=_mean_if_known([row.distinct_2 for row in rows]),
        distinct_1=_mean_if_known([row.distinct_1 for row in rows]),
        compression=_mean_if_known([row.compression for row in rows]),
        repetition=_mean_if_known([row.repetition for row in rows]),
        distinct_answers=_mean_if_known([row.distinct_answers for row in rows]),
        # The seed that says one sentence most often: a mean would be of different sentences.
        frequent=max((row.frequent for row in rows if row.frequent), key=lambda sentence: sentence.share, default=None),
        retention_perplexity=_mean_if_known([row.retention_perplexity for row in rows]),
        train_seconds=_mean_if_known([row.train_seconds for row in rows]),
        trained=_largest([row.trained for row in rows]),
        update_kl=max((row.update_kl for row in rows if row.update_kl is not None), default=None),
        cost=mean_cost([row.cost for row in rows]),
        rules={
            scorer: {rule: float(np.mean([row.rules[scorer][rule] for row in rows])) for rule in rates}
            for scorer, rates in rows[0].rules.items()
        },
        disagreement={scorer: np.concatenate([row.disagreement[scorer] for row in rows]) for scorer in rows[0].disagreement},
        seeds=seeds,
    )


def _mean_if_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _largest(values: Sequence[Trained | None]) -> Trained | None:
    """The seed that needed the most memory. The seeds of a method differ in nothing else here."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return max(known, key=lambda value: value.memory_bytes or 0)


def _best_of_rows(table: AnswerTable, baseline: str, pool: BestOfPool) -> dict[str, Row]:
    # The same checks as for the models' answers.
    drawn = align_answers({baseline: pool.candidates})
    if set(drawn.prompt_ids) != set(table.prompt_ids) or set(drawn.scorers) != set(table.scorers):
        raise DataError("the candidates of best of n have other prompts or scorers than the compared models' answers")
    if pool.scorer not in table.scorers or not all(1 <= n <= drawn.num_candidates for n in pool.sizes):
        raise DataError(
            f"best of {list(pool.sizes)} by {pool.scorer!r} cannot be taken from {drawn.num_candidates} candidates "
            f"with scores of {', '.join(drawn.scorers)}"
        )
    if not any(np.isfinite(drawn.scores[baseline][pool.scorer]).ravel()):
        raise DataError(f"scorer {pool.scorer!r}: no candidate of {baseline!r} got a finite score, so there is no best of n")
    place = {prompt_id: index for index, prompt_id in enumerate(drawn.prompt_ids)}
    # The pool was sampled apart and may have its prompts in another order; every comparison is paired by position.
    order = np.array([place[prompt_id] for prompt_id in table.prompt_ids])
    scores = {scorer: drawn.scores[baseline][scorer][order] for scorer in table.scorers}
    tokens = drawn.tokens[baseline][order]
    stopped = np.array(
        [[row.finish_reason == "stop" for row in drawn.rows[baseline][prompt_id]] for prompt_id in table.prompt_ids], dtype=float
    )
    outcomes = {scorer: pair_outcomes(scores[scorer], table.scores[baseline][scorer]) for scorer in table.scorers}
    # The mean over the baseline's candidates, kept per candidate, because the chances weigh the drawn candidates.
    rates = {
        scorer: prompt_means(values.reshape(-1, values.shape[-1])).reshape(tokens.shape) for scorer, values in outcomes.items()
    }
    characters = _characters(drawn, baseline)[order]
    lengths = _longer(characters, _characters(table, baseline))
    never_chosen = int(np.isnan(scores[pool.scorer]).sum())
    rows = {}
    for n in sorted(set(pool.sizes)):
        chances = best_of_probabilities(scores[pool.scorer], n)
        rows[best_of_name(baseline, n)] = Row(
            scores={scorer: expectation(values, chances)[None] for scorer, values in scores.items()},
            wins={scorer: expectation(values, chances)[None] for scorer, values in rates.items()},
            pairs=Pairs(
                {scorer: _flat(values) for scorer, values in outcomes.items()},
                _flat(lengths),
                _flat(np.broadcast_to(chances[:, :, None], lengths.shape)),
            ),
            kl=None,
            tokens=expectation(tokens, chances)[None],
            token_percentiles=_weighted_percentiles(tokens, chances),
            # Prompts without a finite score have no chances and do not count.
            eos_share=float((stopped * chances).sum() / chances.sum()),
            distinct_2=None,
            distinct_1=None,
            compression=None,
            repetition=None,
            distinct_answers=None,
            frequent=None,
            retention_perplexity=None,
            train_seconds=None,
            cost=answer_cost(n, float(tokens.mean())),
            disagreement={
                scorer: expectation(values[order], chances)[None] for scorer, values in drawn.disagreement[baseline].items()
            },
            best_of=BestOfResult(n=n, num_candidates=drawn.num_candidates, scorer=pool.scorer, never_chosen=never_chosen),
        )
    return rows


def _weighted_percentiles(values: FloatArray, weights: FloatArray) -> tuple[float, float]:
    # NumPy's only method that takes weights.
    p50, p95 = np.percentile(values, TOKEN_PERCENTILES, weights=weights, method="inverted_cdf")
    return float(p50), float(p95)
