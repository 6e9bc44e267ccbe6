"""results.json: the numbers of a comparison, and the pure function that computes them from scored candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field

from align.config.base import StrictModel
from align.errors import DataError
from align.records import ScoredCandidate
from align.report.answers import align_answers
from align.report.best_of import BestOfPool, best_of_kl_bound
from align.report.collapse import FrequentSentence, RedFlag
from align.report.cost import Cost
from align.report.estimate import Bootstrap, Difference, Estimate
from align.report.flags import red_flags
from align.report.length_control import win_rate_at_equal_length
from align.report.optimised import ScorerUse
from align.report.pass_at import PassAt
from align.report.ranking import Ranking, rank_rows
from align.report.rows import BestOfResult, Measured, Row, Trained, make_rows
from align.report.statistics import BoolArray, seeded_bootstrap
from align.runtime.seed import derive_seed
from align.scoring.probes import Probe, ProbeKind

Answers = Mapping[str, Sequence[ScoredCandidate]]


class ScoreResult(Estimate):
    """One scorer's view of one model: its mean score, or its pass@k."""

    delta: Difference | None
    """Paired difference to the baseline, model minus baseline; null for the baseline itself."""
    nonfinite: int = Field(ge=0)
    """Prompts on which this model got no finite score, for pass@k fewer than k. They are left out of these numbers for every
    model."""


class TokenResult(Estimate):
    """Length of the completions in tokens, with the end-of-sequence token."""

    p50: float
    """Median over all completions."""
    p95: float
    """95th percentile over all completions."""


class ModelResult(StrictModel):
    """Everything measured about one row: a model, a method (the mean of its seeds), or best of n from the baseline."""

    scores: dict[str, ScoreResult]
    """Score by scorer, then pass@k by its name (`pass@8`); best of n has no pass@k."""
    win_rate: dict[str, Estimate] | None
    """By scorer: share of candidate pairs this model wins against the baseline, a tie being half; null for the baseline."""
    win_rate_at_equal_length: dict[str, Estimate | None] | None = None
    """By scorer: the win rate that is left where both completions are equally long; null for the baseline, and where nearly all
    completions are longer than the baseline's, or nearly all shorter."""
    kl_to_baseline: Estimate | None
    """KL divergence from the baseline per completion, in nats, estimated on this model's completions; null where not measured."""
    completion_tokens: TokenResult
    """How long the completions are."""
    eos_share: float = Field(ge=0, le=1)
    """Share of completions that ended by themselves rather than at the limit."""
    distinct_2: float | None
    """Distinct word pairs over all word pairs; null when no completion has two words."""
    distinct_1: float | None = None
    """Distinct words over all words; null for best of n."""
    compression_ratio: float | None = None
    """Bytes of all completions over their bytes after zlib; null for best of n."""
    repetition: float | None = None
    """Share of a completion that repeats what it said before, in the mean; null for best of n."""
    distinct_answers: float | None = Field(default=None, ge=0, le=1)
    """Distinct completions over all completions; null for best of n."""
    frequent_sentence: FrequentSentence | None = None
    """The sentence that the most completions contain; null for best of n."""
    disagreement: dict[str, Estimate] = Field(default_factory=dict)
    """By scorer that is an ensemble: standard deviation of its members' scores of a completion, in the mean."""
    rules: dict[str, dict[str, float]] = Field(default_factory=dict)
    """By scorer made of rules: share of the completions that pass each rule."""
    red_flags: list[RedFlag] = Field(default_factory=list)
    """Signs that the model gave something up for its score; empty for the baseline."""
    retention_perplexity: float | None
    """Perplexity on the retention text, whose rise means forgetting; null where not measured."""
    train_seconds: float | None
    """Wall time of this model's own training stage; null where it was not trained here."""
    trained_parameters: int | None = None
    """Parameters that its training stage changed: all, or an adapter's; null where it was not trained here."""
    train_memory_bytes: int | None = None
    """Largest resident set of its training stage's process; null where it was not trained here."""
    cost: Cost | None = None
    """What its whole path needed; null where it was not made here."""
    kl_bound: float | None = None
    """Of best of n, ln n - (n - 1)/n: at most this is its KL to the baseline, in nats, which is not estimated; else null."""
    best_of: BestOfResult | None = None
    """What the row was taken from, if it is best of n."""
    replicates: dict[str, ModelResult] | None = None
    """Of a method: every seed's model by itself, with intervals over prompts alone; null for a single model."""


class ProbeResult(Estimate):
    """What a scorer gives to answers that deserve no score."""

    kind: ProbeKind
    """How every prompt was answered: with the same answer (the best that was found), with the prompt itself, with the words of a
    good answer in another order, or with many answers joined."""
    text: str | None
    """The answer, if it is the same for all prompts and was sampled."""


class EngineResult(StrictModel):
    """The engine that sampled every completion."""

    name: str
    """Name of the engine really used."""
    version: str
    """Its version."""


class Results(StrictModel):
    """A comparison of models on the same prompts with the same scorers.

    Intervals are paired bootstraps over prompts; those of methods with several seeds are over seeds and prompts.
    """

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
    temperature: float | None = Field(default=None, ge=0)
    """Of the sampling; 0 is greedy. Null in results of earlier versions."""
    bootstrap_resamples: int = Field(ge=1)
    """Resamples of each bootstrap."""
    engine: EngineResult
    """What sampled the completions."""
    models: dict[str, ModelResult] = Field(min_length=1)
    """Numbers by row, in the order of the recipe: models, methods under their name, best of n after the baseline."""
    ranking: dict[str, Ranking]
    """Order of the models by scorer, then by pass@k."""
    deciding_scorer: str | None = None
    """The scorer that decides which model is best; null in results of earlier versions, where the last one does."""
    pass_at: PassAt | None = None
    """What pass@k was computed from; null without it."""
    optimised: dict[str, list[str]] = Field(default_factory=dict)
    """By scorer: rows that were trained or selected with it. A scorer that none was is absent."""
    same_rows: dict[str, str] = Field(default_factory=dict)
    """By reward model that no row was trained or selected with: one that was, and that learned from the same rows."""
    probes: dict[str, list[ProbeResult]] = Field(default_factory=dict)
    """By scorer that no training used: what it gives to answers that deserve no score."""

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers, in order."""
        return [name for name in self.ranking if self.pass_at is None or name not in self.pass_at.names]

    @property
    def measures(self) -> list[str]:
        """All that models are ranked by: the scorers, then pass@k."""
        return list(self.ranking)

    @property
    def ensembles(self) -> list[str]:
        """The scorers whose members' disagreement is known."""
        return list(self.models[self.baseline].disagreement)

    @property
    def decider(self) -> str:
        """The scorer that decides which model is best."""
        return self.deciding_scorer or self.scorers[-1]

    @property
    def models_baseline_first(self) -> list[str]:
        """Names of the rows: the baseline, best of n, the others."""
        return [self.baseline, *self.best_of_rows, *(name for name in self.trained_rows if name != self.baseline)]

    @property
    def best_of_rows(self) -> list[str]:
        """Names of the rows of best of n, by n."""
        return [name for name, row in self.models.items() if row.best_of is not None]

    @property
    def trained_rows(self) -> list[str]:
        """Names of the rows that are models or methods, the baseline's among them."""
        return [name for name, row in self.models.items() if row.best_of is None]

    @property
    def several_seeds(self) -> dict[str, int]:
        """Number of seeds by method, of the methods with more than one."""
        counts = {name: len(row.replicates or {}) for name, row in self.models.items()}
        return {name: count for name, count in counts.items() if count > 1}

    def members(self, name: str) -> list[str]:
        """The compared models that a row is computed from; none for best of n, whose candidates were drawn apart."""
        row = self.models[name]
        return [] if row.best_of is not None else list(row.replicates or [name])

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        """The results in a parsed results.json."""
        # Through JSON text: strict models take a list for a tuple only there.
        return cls.model_validate_json(json.dumps(value))

    def to_json(self) -> dict[str, Any]:
        """What results.json holds, for `align.store.atomic.write_json`."""
        return self.model_dump(mode="json")


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
    temperature: float | None = None,
    kl_to_baseline: Mapping[str, Mapping[str, float]] | None = None,
    retention_perplexity: Mapping[str, float | None] | None = None,
    train_seconds: Mapping[str, float | None] | None = None,
    trained: Mapping[str, Trained] | None = None,
    costs: Mapping[str, Cost] | None = None,
    methods: Mapping[str, Sequence[str]] | None = None,
    best_of: BestOfPool | None = None,
    rules: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    probes: Mapping[str, Sequence[Probe]] | None = None,
    update_kl: Mapping[str, float] | None = None,
    deciding_scorer: str | None = None,
    use: ScorerUse | None = None,
    pass_at: PassAt | None = None,
) -> Results:
    """Compute results.json from every model's scored candidates.

    Args:
        answers: model → its candidates, in any order; they are joined by `prompt_id` and `candidate_index`.
        baseline: one of the models.
        temperature: that the candidates were sampled at; 0 is greedy.
        kl_to_baseline: model → prompt_id → nats per completion; a model that is absent was not measured.
        retention_perplexity: model → perplexity on the retention text.
        train_seconds: model → wall time of its training stage.
        trained: model → how much of it was trained, and in how much memory.
        costs: model → what its whole path needed.
        methods: method → its models, which differ in the training seed and become one row.
        best_of: the baseline's candidates that rows of best of n are taken from.
        rules: model → scorer made of rules → rule → share of the answers that pass it.
        probes: scorer → what it gave to answers that deserve no score.
        update_kl: model → the largest KL of an update of its training, nats per token.
        deciding_scorer: the scorer that decides which model is best; the last one when not given.
        use: which scorers the models were trained or selected with.
        pass_at: the pass@k to show, from one of the scorers.
    Raises:
        DataError: if the models do not have the same prompts, candidates and scorers, a scorer has no prompt on which
            every row got a finite score, or methods or best of n do not fit the answers.
    """
    table = align_answers(answers)
    if baseline not in table.models:
        raise DataError(f"the baseline {baseline!r} is not among the compared models: {', '.join(table.models)}")
    bootstrap = partial(seeded_bootstrap, seed=derive_seed(seed, "bootstrap"), resamples=bootstrap_resamples)
    kl, perplexity, seconds = kl_to_baseline or {}, retention_perplexity or {}, train_seconds or {}
    measured = Measured(kl, perplexity, seconds, trained or {}, rules or {}, update_kl or {}, costs or {})
    rows = make_rows(table, baseline, measured, methods or {}, best_of, pass_at)
    # Per scorer: one that failed on a prompt must not remove the prompt from the others' numbers.
    usable = {measure: _usable_prompts(rows, measure) for measure in rows[baseline].scores}
    models = {name: _row_result(row, rows[baseline], usable, bootstrap) for name, row in rows.items()}
    return Results(
        recipe=recipe,
        command=list(command),
        seed=seed,
        baseline=baseline,
        prompts=len(table.prompt_ids),
        num_candidates=table.num_candidates,
        temperature=temperature,
        bootstrap_resamples=bootstrap_resamples,
        engine=EngineResult(name=engine_name, version=engine_version),
        models=models,
        ranking={measure: _ranking(rows, models, measure, usable[measure], bootstrap) for measure in usable},
        deciding_scorer=deciding_scorer or table.scorers[-1],
        pass_at=pass_at,
        optimised=_optimised_rows(rows, use or ScorerUse({}, {})),
        same_rows=use.same_rows if use else {},
        probes={
            scorer: [result for probe in found if (result := _probe_result(probe, bootstrap)) is not None]
            for scorer, found in (probes or {}).items()
        },
    )


def _ranking(
    rows: Mapping[str, Row], models: Mapping[str, ModelResult], measure: str, usable: BoolArray, bootstrap: Bootstrap
) -> Ranking:
    measured = {name: row for name, row in rows.items() if measure in row.scores}
    return rank_rows(measured, {name: models[name].scores[measure].delta for name in measured}, measure, usable, bootstrap)


def _usable_prompts(rows: Mapping[str, Row], measure: str) -> BoolArray:
    """[prompts], True where every row has a finite value: a pair needs both sides, and all rows the same prompts."""
    finite = np.all([np.isfinite(row.scores[measure]).all(axis=0) for row in rows.values() if measure in row.scores], axis=0)
    if not finite.any():
        raise DataError(
            f"scorer {measure!r}: on none of the {len(finite)} prompts did every model get a finite score",
            hint="Look at the scores in the comparison's answers, and fix or remove this scorer.",
        )
    return np.asarray(finite)


def _row_result(row: Row, baseline: Row, usable: Mapping[str, BoolArray], bootstrap: Bootstrap) -> ModelResult:
    wins, best_of = row.wins, row.best_of
    return ModelResult(
        scores={name: _score_result(row, baseline, name, usable[name], bootstrap) for name in row.scores},
        win_rate=None if wins is None else {scorer: Estimate.of(bootstrap(wins[scorer][:, usable[scorer]])) for scorer in wins},
        win_rate_at_equal_length=None
        if row.pairs is None
        else {scorer: win_rate_at_equal_length(row.pairs, scorer, usable[scorer], bootstrap) for scorer in row.pairs.outcomes},
        kl_to_baseline=None if row.kl is None else Estimate.of(bootstrap(row.kl)),
        completion_tokens=_tokens(row, bootstrap),
        eos_share=row.eos_share,
        distinct_2=row.distinct_2,
        distinct_1=row.distinct_1,
        compression_ratio=row.compression,
        repetition=row.repetition,
        distinct_answers=row.distinct_answers,
        frequent_sentence=row.frequent,
        disagreement={scorer: Estimate.of(bootstrap(values[:, usable[scorer]])) for scorer, values in row.disagreement.items()},
        rules={scorer: dict(rates) for scorer, rates in row.rules.items()},
        red_flags=[] if row is baseline or best_of is not None else red_flags(row, baseline),
        retention_perplexity=row.retention_perplexity,
        train_seconds=row.train_seconds,
        trained_parameters=row.trained and row.trained.parameters,
        train_memory_bytes=row.trained and row.trained.memory_bytes,
        cost=row.cost,
        kl_bound=None if best_of is None else best_of_kl_bound(best_of.n),
        best_of=best_of,
        replicates={name: _row_result(one, baseline, usable, bootstrap) for name, one in row.seeds.items()} or None,
    )


def _optimised_rows(rows: Mapping[str, Row], use: ScorerUse) -> dict[str, list[str]]:
    """By scorer: the rows of the models that optimised it, and those of best of n, which choose by it."""
    found: dict[str, list[str]] = {}
    for name, row in rows.items():
        members = set(row.seeds or [name])
        scorers = [scorer for scorer, models in use.optimised.items() if members & set(models)]
        for scorer in [row.best_of.scorer] if row.best_of else scorers:
            found.setdefault(scorer, []).append(name)
    return found


def _probe_result(probe: Probe, bootstrap: Bootstrap) -> ProbeResult | None:
    finite = [value for value in probe.scores if value is not None]
    return ProbeResult.of(bootstrap(np.array([finite])), kind=probe.kind, text=probe.text) if finite else None


def _score_result(row: Row, baseline: Row, measure: str, usable: BoolArray, bootstrap: Bootstrap) -> ScoreResult:
    own, against = row.scores[measure][:, usable], baseline.scores[measure][:, usable]
    return ScoreResult.of(
        bootstrap(own),
        delta=None if row is baseline else Difference.between(own, against, bootstrap),
        nonfinite=int((~np.isfinite(row.scores[measure])).any(axis=0).sum()),
    )


def _tokens(row: Row, bootstrap: Bootstrap) -> TokenResult:
    # Best of n has no length on prompts where no candidate can be chosen.
    known = np.isfinite(row.tokens).all(axis=0)
    return TokenResult.of(bootstrap(row.tokens[:, known]), p50=row.token_percentiles[0], p95=row.token_percentiles[1])
