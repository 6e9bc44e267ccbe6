"""Compare models: the same held-out prompts, the same engine and seeds, the same scorers, paired statistics.

In: models, prompts, scorers. Out: a comparison (`results.json`, `report.html`, every answer in `answers/<model>.jsonl`, the
candidates of best of n in `best_of_candidates.jsonl`).
Metrics: those of results.json: score means and paired differences with 95 % intervals, win rates, KL to the baseline,
completion length, share of completions that end by themselves, distinct-2, perplexity on retention text, training seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from align.config.base import Problem
from align.config.checks import check_pass_at
from align.config.reference import ModelReference, RowsReference
from align.config.row_need import RowNeed
from align.config.sections import Generation, PointwiseScorer, RulesScorer, reward_models_of
from align.errors import DataError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.records import Candidate, Drop, Prompt, ScoredCandidate, TextRow, prompt_key
from align.rows import data_kinds
from align.runtime.seed import derive_seed
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, write_rows
from align.store.atomic import write_json

if TYPE_CHECKING:
    from align.engines.holder import EngineHolder
    from align.engines.shards import SamplingReport
    from align.engines.task import SamplingTask
    from align.report.best_of import BestOfPool
    from align.scoring.probes import Probe

VERSION = 11


class Config(Generation, StageConfig):
    """Compare models on held-out prompts."""

    # The table and the report show names, so a renamed stage needs a new result.
    labels_matter: ClassVar[bool] = True

    models: list[ModelReference] = Field(min_length=1)
    """Models to compare."""
    baseline: ModelReference
    """The model that differences, win rates and KL are against; one of `models`."""
    prompts: RowsReference[Prompt]
    """Held-out prompts; none may occur in the training data."""
    scorers: dict[str, PointwiseScorer] = Field(min_length=1)
    """Scorer by name: the name of a reward model stage, {rules: …}, or {ensemble: […]}."""
    retention: RowsReference[TextRow] | None = None
    """Plain text on which forgetting is measured as perplexity."""
    num_candidates: int = Field(default=1, ge=1)
    """Completions per prompt and model; scores are averaged per prompt before the statistics."""
    bootstrap_resamples: int = Field(default=10_000, ge=100)
    """Resamples of the paired bootstrap over prompts."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a reward model; scores depend on it by rounding only (below 1e-5)."""
    methods: dict[str, Annotated[list[ModelReference], Field(min_length=1)]] | None = None
    """Models that are one method trained with other seeds, by the method's name: shown as one row, with intervals over seeds and
    prompts. Each must be in `models` too; a model in no method, and the baseline, have a row of their own."""
    best_of: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    """Extra rows: what the baseline scores when n completions are drawn and the best is kept, for each n given here."""
    best_of_scorer: str | None = None
    """The scorer that chooses in best of n; default: the first."""
    deciding_scorer: str | None = None
    """The scorer that decides which model is best; name one that no training or selection used. Default: the last."""
    pass_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    """Also show pass@k, how often at least one of k completions is right, for each k given here; none above num_candidates."""
    pass_scorer: str | None = None
    """The scorer that says which completions are right, made of rules; default: the deciding one."""
    pass_score: float = Field(default=1.0, gt=0, le=1)
    """A completion is right if it has at least this score; 1: it passes all rules."""

    def row_needs(self) -> Iterator[RowNeed]:
        from align.scoring.rules import prompt_needs

        yield from prompt_needs("prompts", {("scorers", name): scorer for name, scorer in self.scorers.items()})

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        yield from check_pass_at(cls, fields)
        models, baseline = fields.get("models"), fields.get("baseline")
        if not isinstance(models, list):
            return
        for index, model in enumerate(models):
            if isinstance(model, str) and model in models[:index]:
                yield Problem(("models", index), f"'{model}' is here twice")
        if isinstance(baseline, str) and models and baseline not in models:
            names = ", ".join(model for model in models if isinstance(model, str))
            yield Problem(("baseline",), f"'{baseline}' is not one of the models that are compared ({names})")

    @model_validator(mode="after")
    def _rows_fit(self) -> Config:
        models, methods = list(self.models), self.methods or {}
        _refuse_twice("best_of", self.best_of or [])
        members = [member for group in methods.values() for member in group]
        _refuse_twice("methods", members)
        for member in members:
            if member not in models:
                raise ValueError(f"methods: '{member}' is not in models: {', '.join(models)}")
            if member == self.baseline:
                raise ValueError(f"methods: '{member}' is the baseline, which stays a row of its own")
        _refuse_twice("rows", [*(model for model in models if model not in members), *methods])
        if self.best_of_scorer is not None and self.best_of is None:
            raise ValueError("best_of_scorer chooses among the candidates of best_of, which is not given")
        for key in ("best_of_scorer", "deciding_scorer"):
            if (name := getattr(self, key)) is not None and name not in self.scorers:
                raise ValueError(f"{key} '{name}' is not in scorers: {', '.join(self.scorers)}")
        return self

    @property
    def pool_candidates(self) -> int:
        """Candidates per prompt that best of n is taken from; 0 without it."""
        return max([self.num_candidates, *self.best_of]) if self.best_of else 0

    @property
    def decider(self) -> str:
        """The scorer that decides which model is best."""
        return self.deciding_scorer or list(self.scorers)[-1]


def _refuse_twice(what: str, names: Sequence[Any]) -> None:
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise ValueError(f"{what}: {twice[0]!r} is there twice")


RESULTS_NAME = "results.json"
REPORT_NAME = "report.html"
UPDATE_KL = "policy/approxkl_max"
"""Metric of PPO's manifest."""
ANSWERS_NAME = "answers"
POOL_NAME = "best_of_candidates.jsonl"
POOL_LABEL = "for best of n"
"""How the candidates of best of n are called where models have their names, none of which has a space."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Every model answers, every scorer scores, then the statistics, the table's numbers and the report."""
    from align.report.cost import model_costs, stage_costs
    from align.report.html import write_report
    from align.report.optimised import scorer_use
    from align.report.pass_at import PassAt
    from align.report.results import build_results
    from align.report.training import train_seconds, trained, training_logs
    from align.scoring.compared_likelihoods import measure_likelihoods

    config = context.config
    prompts = context.artifact(config.prompts).rows(Prompt)
    seen = _seen_in_training(context, prompts)
    sampled = _sample_all(context, prompts)
    scored = _score_all(context, sampled)
    pool = _best_of_pool(config, scored.pop(POOL_LABEL, scored[config.baseline]))
    likelihoods = measure_likelihoods(
        context,
        sampled.folders,
        sampled.answers,
        sampled.prompt_token_ids,
        baseline=config.baseline,
        texts=[row.text for row in context.artifact(config.retention).rows(TextRow)] if config.retention else [],
        batch_tokens=config.batch_tokens,
        num_workers=config.num_workers,
    )
    results = build_results(
        scored,
        baseline=config.baseline,
        recipe=str(context.recipe.get("name", context.name)),
        command=context.command,
        seed=context.seed,
        engine_name="+".join(sampled.engines),
        engine_version="+".join(sampled.engines.values()),
        bootstrap_resamples=config.bootstrap_resamples,
        temperature=config.temperature,
        kl_to_baseline=likelihoods.kl,
        retention_perplexity=likelihoods.perplexity,
        train_seconds={name: train_seconds(context.artifact(name), context.artifacts) for name in config.models},
        trained={name: cost for name in config.models if (cost := trained(context.artifact(name), context.artifacts))},
        costs=model_costs(stage_costs(list(context.artifacts.values()), config.models), config.models, config.baseline),
        methods=config.methods,
        best_of=pool,
        rules={name: _rule_rates(config, rows) for name, rows in scored.items()},
        probes=_probe_scorers(context, scored),
        deciding_scorer=config.decider,
        use=scorer_use(config.model_dump(mode="json")["scorers"], config.models, config.baseline, context.artifacts),
        pass_at=PassAt(k=config.pass_at, scorer=config.pass_scorer or config.decider, score=config.pass_score)
        if config.pass_at
        else None,
        update_kl={name: kl for name in config.models if (kl := context.artifact(name).manifest.metrics.get(UPDATE_KL))},
    )
    write_json(context.output / RESULTS_NAME, results.to_json())
    for name, rows in scored.items():
        write_rows(context.output / ANSWERS_NAME / f"{name}.jsonl", rows)
    if pool is not None:
        write_rows(context.output / POOL_NAME, list(pool.candidates))
    write_rows(context.output / DROPS_NAME, list(sampled.drops.values()))
    write_report(
        context.output / REPORT_NAME,
        results=results,
        answers=scored,
        curves=training_logs(context.artifacts),
        stages=list(context.artifacts.values()),
        recipe=context.recipe,
        columns={prompt.id: prompt.fields for prompt in prompts},
        primary_scorer=results.decider,
    )
    return StageOutcome(
        metrics={"prompts_seen_in_training": seen, "new_tokens": sampled.new_tokens, "engine_seconds": sampled.engine_seconds},
        rows_in=len(prompts),
        rows_out=len(prompts) - len(sampled.drops),
        dropped=dict(Counter(drop.drop_reason for drop in sampled.drops.values())),
        versions=sampled.engines,
    )


@dataclass
class _Sampled:
    """Every model's answers, and what they were sampled with."""

    folders: dict[str, ModelFolder]
    answers: dict[str, list[Candidate]] = field(default_factory=dict)
    pool: list[Candidate] = field(default_factory=list)
    """Candidates of the baseline for best of n, where more are needed than it has answers."""
    prompt_token_ids: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Model → prompt id → token ids."""
    engines: dict[str, str] = field(default_factory=dict)
    """Version by engine; two where vLLM serves some models and cannot serve others."""
    new_tokens: int = 0
    engine_seconds: float = 0.0
    drops: dict[str, Drop] = field(default_factory=dict)
    """Prompts that at least one model could not be shown, by id."""

    def count(self, report: SamplingReport) -> None:
        self.engines[report.engine] = report.engine_version
        self.new_tokens += report.new_tokens
        self.engine_seconds += report.engine_seconds


def _seen_in_training(context: StageContext[Config], prompts: list[Prompt]) -> int:
    """How many held-out prompts occur in the data that the models were made from; the user gets a note if there are any."""
    held_out = {prompt_key(prompt) for prompt in prompts}
    seen: set[str] = set()
    for name, artifact in context.artifacts.items():
        kind = data_kinds().get(artifact.kind)
        if kind is not None and kind.has_prompt and name != context.config.prompts:
            seen |= held_out & {prompt_key(row) for row in artifact.rows(kind.record)}
    if seen:
        context.note(f"{len(seen)} of {len(held_out)} held-out prompts occur in the training data; scores may flatter")
    return len(seen)


def _sample_all(context: StageContext[Config], prompts: list[Prompt]) -> _Sampled:
    """Every model on the same prompts with the same seeds; one engine, whose weights are exchanged."""
    from align.engines.holder import EngineHolder
    from align.engines.task import prepare_task

    config = context.config
    result = _Sampled({name: ModelFolder.of(context.artifact(name)) for name in config.models})
    holder = EngineHolder(config, context.pool.gpus_each, host=context.engine_host)
    for name, folder in result.folders.items():
        chat_format = load_format(folder, where=context.artifact(name).where(None))
        where = context.artifact(config.prompts).where
        task, drops = prepare_task(prompts, chat_format, config, model_folder=folder, seed=context.seed, where=where)
        report = _sample_one(context, task, name, holder)
        result.drops.update((drop.id, drop) for drop in drops)
        result.answers[name] = list(report.candidates())
        # Every model reads a prompt through its own template; its likelihoods need exactly these ids.
        result.prompt_token_ids[name] = {p.id: ids for p, ids in zip(task.prompts, task.prompt_token_ids, strict=True)}
        result.count(report)
        if name == config.baseline and config.pool_candidates > config.num_candidates:
            # Apart from its answers, which must not move by a rounding because more candidates share their batches.
            more = replace(task, config=config.model_copy(update={"num_candidates": config.pool_candidates}))
            report = _sample_one(context, more, f"{name} {POOL_LABEL}", holder)
            result.pool = list(report.candidates())
            result.count(report)
    # Scoring loads models too, and needs the memory.
    holder.close()
    _require_same_prompts(result)
    return result


def _sample_one(context: StageContext[Config], task: SamplingTask, name: str, holder: EngineHolder) -> SamplingReport:
    from align.engines.shards import sample

    return sample(
        task,
        context.work / ANSWERS_NAME / name,
        holder=holder,
        stop_requested=context.stop_requested,
        report=context.counter(f"answers of {name}", "shards", task.per_shard),
        pool=context.pool,
    )


def _require_same_prompts(sampled: _Sampled) -> None:
    """Templates differ, so a prompt may fit one model and not another; only prompts that all answered can be compared."""
    for name, candidates in sampled.answers.items():
        sampled.answers[name] = [candidate for candidate in candidates if candidate.prompt_id not in sampled.drops]
        if not sampled.answers[name]:
            raise DataError("There is no prompt that fits max_prompt_tokens for every model", hint="Raise max_prompt_tokens.")
    sampled.pool = [candidate for candidate in sampled.pool if candidate.prompt_id not in sampled.drops]


def _score_all(context: StageContext[Config], sampled: _Sampled) -> dict[str, list[ScoredCandidate]]:
    """Scores of every model's answers, and under `POOL_LABEL` of the candidates for best of n, where there are some."""
    from align.scoring.scorers import ScorerSet, reward_model_folders

    config = context.config
    lists = sampled.answers | ({POOL_LABEL: sampled.pool} if sampled.pool else {})
    labels = {name: f"{config.baseline} {name}" if name == POOL_LABEL else name for name in lists}
    counts = {name: context.counter(f"score {labels[name]}", "scores") for name in lists}
    scorers = ScorerSet(config.scorers, reward_model_folders(config.scorers, context.artifacts), batch_tokens=config.batch_tokens)
    return scorers.score_lists(lists, lambda name, done: counts[name](done, len(lists[name]) * len(config.scorers)))


def _probe_scorers(context: StageContext[Config], scored: Mapping[str, list[ScoredCandidate]]) -> dict[str, list[Probe]]:
    """What the scorers that no training used give to answers that deserve no score."""
    from align.scoring.probes import probe_scorer
    from align.scoring.scorers import ScorerSet, reward_model_folders

    config, found = context.config, {}
    used = {fingerprint for artifact in context.artifacts.values() for fingerprint in artifact.manifest.inputs.values()}
    for name, scorer in config.scorers.items():
        if any(context.artifact(model).fingerprint in used for model in reward_models_of(scorer)):
            continue
        one = {name: scorer}
        scorers = ScorerSet(one, reward_model_folders(one, context.artifacts), batch_tokens=config.batch_tokens)

        def score(candidates: Sequence[Candidate], name: str = name, scorers: ScorerSet = scorers) -> list[float | None]:
            return [row.scores[name] for row in scorers.score(candidates, lambda _: None)]

        seed = derive_seed(context.seed, "probes", name)
        found[name] = probe_scorer(score, scored, name, seed=seed, made_up=isinstance(scorer, RulesScorer))
        scorers.close()
    return found


def _rule_rates(config: Config, rows: Sequence[Candidate]) -> dict[str, dict[str, float]]:
    """Scorer made of rules → rule → share of the answers that pass it."""
    from align.scoring.rules import pass_rates

    rule_sets = {name: scorer.rules for name, scorer in config.scorers.items() if isinstance(scorer, RulesScorer)}
    return {name: pass_rates(rules, rows) for name, rules in rule_sets.items()}


def _best_of_pool(config: Config, candidates: list[ScoredCandidate]) -> BestOfPool | None:
    """The baseline's scored candidates for best of n, where the recipe wants it."""
    from align.report.best_of import BestOfPool

    if config.best_of is None:
        return None
    return BestOfPool(config.best_of, config.best_of_scorer or next(iter(config.scorers)), candidates)
