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
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field, model_validator

from align.config.base import Problem
from align.config.checks import check_pass_at
from align.config.reference import ModelReference, RowsReference
from align.config.row_need import RowNeed
from align.config.sections import Generation, PointwiseScorer, RulesScorer, reward_models_of
from align.errors import DataError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.records import Drop, Prompt, ScoredCandidate, TextRow, prompt_key
from align.rows import data_kinds
from align.runtime.seed import derive_seed
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, write_rows
from align.store.atomic import write_json

if TYPE_CHECKING:
    from align.engines.kept_answers import KeptAnswers
    from align.engines.task import SamplingTask
    from align.report.best_of import BestOfPool
    from align.scoring.compared_likelihoods import Likelihoods
    from align.scoring.probes import Probe
    from align.scoring.scorers import Column
    from align.store.kept import Reused

VERSION = 12

T = TypeVar("T")


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
    """Every model answers, every scorer scores, then the statistics, the table's numbers and the report.

    What one model answered, scored and read is kept in the store, so a comparison with one model more samples that model alone.
    """
    from align.report.cost import model_costs, stage_costs
    from align.report.html import write_report
    from align.report.optimised import scorer_use
    from align.report.pass_at import PassAt
    from align.report.results import build_results
    from align.report.training import train_seconds, trained, training_logs
    from align.store.kept import Reused

    config, reused = context.config, Reused()
    prompts = context.artifact(config.prompts).rows(Prompt)
    seen = _seen_in_training(context, prompts)
    sampled = _sample_all(context, prompts, reused)
    scored = _score_all(context, sampled, reused)
    likelihoods = _read_all(context, sampled, reused)
    engines = sampled.engines
    results = build_results(
        scored.rows,
        baseline=config.baseline,
        recipe=str(context.recipe.get("name", context.name)),
        command=context.command,
        seed=context.seed,
        engine_name="+".join(engines),
        engine_version="+".join(engines.values()),
        bootstrap_resamples=config.bootstrap_resamples,
        temperature=config.temperature,
        kl_to_baseline={name: sampled.of_shown(kl) for name, kl in likelihoods.kl.items()},
        retention_perplexity=likelihoods.perplexity,
        train_seconds={name: train_seconds(context.artifact(name), context.artifacts) for name in config.models},
        trained={name: cost for name in config.models if (cost := trained(context.artifact(name), context.artifacts))},
        costs=model_costs(stage_costs(list(context.artifacts.values()), config.models), config.models, config.baseline),
        methods=config.methods,
        best_of=scored.pool,
        rules=scored.rules,
        probes=scored.probes,
        deciding_scorer=config.decider,
        use=scorer_use(config.model_dump(mode="json")["scorers"], config.models, config.baseline, context.artifacts),
        pass_at=PassAt(k=config.pass_at, scorer=config.pass_scorer or config.decider, score=config.pass_score)
        if config.pass_at
        else None,
        update_kl={name: kl for name in config.models if (kl := context.artifact(name).manifest.metrics.get(UPDATE_KL))},
    )
    write_json(context.output / RESULTS_NAME, results.to_json())
    for name, rows in scored.rows.items():
        write_rows(context.output / ANSWERS_NAME / f"{name}.jsonl", rows)
    if scored.pool is not None:
        write_rows(context.output / POOL_NAME, list(scored.pool.candidates))
    write_rows(context.output / DROPS_NAME, list(sampled.drops.values()))
    write_report(
        context.output / REPORT_NAME,
        results=results,
        answers=scored.rows,
        curves=training_logs(context.artifacts),
        stages=list(context.artifacts.values()),
        recipe=context.recipe,
        columns={prompt.id: prompt.fields for prompt in prompts},
        primary_scorer=results.decider,
    )
    return StageOutcome(
        metrics={
            "prompts_seen_in_training": seen,
            "new_tokens": sum(answers.new_tokens for answers in sampled.answers.values()),
            "engine_seconds": sum(answers.engine_seconds for answers in sampled.answers.values()),
            **reused.metrics,
        },
        rows_in=len(prompts),
        rows_out=len(prompts) - len(sampled.drops),
        dropped=dict(Counter(drop.drop_reason for drop in sampled.drops.values())),
        versions=engines,
    )


@dataclass
class _Sampled:
    """Every model's answers, and what they were sampled with."""

    folders: dict[str, ModelFolder]
    """By model: each tokenizer is read once."""
    answers: dict[str, KeptAnswers] = field(default_factory=dict)
    """By model; under `POOL_LABEL` the further candidates of the baseline for best of n, where it needs more."""
    prompt_token_ids: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Model → prompt id → token ids."""
    drops: dict[str, Drop] = field(default_factory=dict)
    """Prompts that at least one model could not be shown, by id."""

    @property
    def engines(self) -> dict[str, str]:
        """Version by engine; two where vLLM serves some models and cannot serve others."""
        return {name: version for answers in self.answers.values() for name, version in answers.engines.items()}

    def of_shown(self, values: Mapping[str, T]) -> dict[str, T]:
        """The values, by prompt id, of the prompts that all models were shown. Only these can be compared."""
        return {prompt_id: value for prompt_id, value in values.items() if prompt_id not in self.drops}


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


def _sample_all(context: StageContext[Config], prompts: list[Prompt], reused: Reused) -> _Sampled:
    """Every model on the same prompts with the same seeds; one engine, whose weights are exchanged."""
    from align.engines.holder import EngineHolder
    from align.engines.kept_answers import ANSWERS_VERSION, answers_key, kept_answers
    from align.engines.task import prepare_task
    from align.store.kept import ANSWERS, model_content

    config = context.config
    result = _Sampled({name: ModelFolder.of(context.artifact(name)) for name in config.models})
    holder = EngineHolder(config, context.pool.gpus_each, host=context.engine_host)

    def answers_of(task: SamplingTask, model: str, label: str) -> KeptAnswers:
        artifact = context.artifact(model)
        kept = context.kept(
            ANSWERS,
            ANSWERS_VERSION,
            answers_key(task, model_content(artifact), gpus_each=context.pool.gpus_each),
            f"{ANSWERS} of {label}",
            sources={"model": artifact.fingerprint, "prompts": context.artifact(config.prompts).fingerprint},
            settings={"seed": task.seed, "first_candidate": task.first_candidate, **task.config.text_settings()},
        )
        return kept_answers(kept, task, holder, context, reused)

    for name, folder in result.folders.items():
        chat_format = load_format(folder, where=context.artifact(name).where(None))
        where = context.artifact(config.prompts).where
        task, drops = prepare_task(prompts, chat_format, config, model_folder=folder, seed=context.seed, where=where)
        result.answers[name] = answers_of(task, name, name)
        result.drops.update((drop.id, drop) for drop in drops)
        # Every model reads a prompt through its own template; its likelihoods need exactly these ids.
        result.prompt_token_ids[name] = {p.id: ids for p, ids in zip(task.prompts, task.prompt_token_ids, strict=True)}
        if name == config.baseline and (more := config.pool_candidates - config.num_candidates) > 0:
            # Apart from its answers, which must not move by a rounding because more candidates share their batches.
            more_config = config.model_copy(update={"num_candidates": more})
            further = replace(task, config=more_config, first_candidate=config.num_candidates)
            result.answers[POOL_LABEL] = answers_of(further, name, f"{name} {POOL_LABEL}")
    # Scoring loads models too, and needs the memory.
    holder.close()
    reused.note(context, ANSWERS)
    # Templates differ, so a prompt may fit one model and not another.
    if len(result.drops) == len(prompts):
        raise DataError("There is no prompt that fits max_prompt_tokens for every model", hint="Raise max_prompt_tokens.")
    return result


@dataclass
class _Scored:
    """The answers to the prompts that all models were shown, and what the scorers say of them."""

    rows: dict[str, list[ScoredCandidate]] = field(default_factory=dict)
    """By model."""
    pool: BestOfPool | None = None
    """The baseline's candidates for best of n, where the recipe wants it."""
    rules: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Model → scorer made of rules → rule → share of the answers that pass it."""
    probes: dict[str, list[Probe]] = field(default_factory=dict)
    """What the scorers that no training used give to answers that deserve no score."""


def _score_all(context: StageContext[Config], sampled: _Sampled, reused: Reused) -> _Scored:
    """One scorer after the other; all answers of a model are scored, so that no other model decides a number."""
    from align.engines.kept_answers import by_prompt
    from align.report.best_of import BestOfPool
    from align.scoring.kept_scores import SCORES, SCORES_VERSION, kept_scores, scorer_content
    from align.scoring.probes import PROBES, PROBES_VERSION, kept_probes, probe_scorer
    from align.scoring.rules import pass_rates
    from align.scoring.scorers import ScorerSet, reward_model_folders, with_scores

    config, result = context.config, _Scored(rules={name: {} for name in context.config.models})
    folders = reward_model_folders(config.scorers, context.artifacts)
    scorers = ScorerSet(config.scorers, folders, batch_tokens=config.batch_tokens)
    shown = {
        label: [index for index, row in enumerate(answers.candidates) if row.prompt_id not in sampled.drops]
        for label, answers in sampled.answers.items()
    }
    columns: dict[str, dict[str, Column]] = {label: {} for label in sampled.answers}

    def rows_of(label: str) -> list[ScoredCandidate]:
        candidates = sampled.answers[label].candidates
        return with_scores([candidates[index] for index in shown[label]], columns[label])

    used = {fingerprint for artifact in context.artifacts.values() for fingerprint in artifact.manifest.inputs.values()}
    for name, scorer in config.scorers.items():
        content = scorer_content(scorer, context.artifacts, batch_tokens=config.batch_tokens)
        for label, answers in sampled.answers.items():
            what = f"{SCORES} by {name} of {config.baseline + ' ' if label == POOL_LABEL else ''}{label}"
            kept = context.kept(SCORES, SCORES_VERSION, {"scorer": content, "answers": answers.digest}, what)
            column = kept_scores(kept, scorers, name, answers.candidates, context, reused).at(shown[label])
            columns[label][name] = column
            if column.rules is not None and label != POOL_LABEL:
                result.rules[label][name] = pass_rates(column.rules)
        reused.note(context, f"{SCORES} by {name}")
        if not any(context.artifact(model).fingerprint in used for model in reward_models_of(scorer)):
            seed = derive_seed(context.seed, "probes", name)
            digests = [sampled.answers[model].digest for model in config.models]
            everything = {"scorer": content, "answers": digests, "dropped": sorted(sampled.drops), "seed": seed}
            score = scorers.score_by(name)
            rows = {str(model): rows_of(model) for model in config.models}
            probe = partial(probe_scorer, score, rows, name, seed=seed, made_up=isinstance(scorer, RulesScorer))
            kept = context.kept(PROBES, PROBES_VERSION, everything, f"{PROBES} of {name}")
            result.probes[name] = kept_probes(kept, context, reused, probe)
        scorers.close()
    result.rows = {model: rows_of(model) for model in config.models}
    if config.best_of is not None:
        candidates = by_prompt(*(rows_of(label) for label in (config.baseline, POOL_LABEL) if label in columns))
        result.pool = BestOfPool(config.best_of, config.best_of_scorer or next(iter(config.scorers)), candidates)
    return result


def _read_all(context: StageContext[Config], sampled: _Sampled, reused: Reused) -> Likelihoods:
    """Every model reads its own answers and plain texts, the baseline those of all."""
    from align.scoring.compared_likelihoods import LIKELIHOODS, Reader, measure_likelihoods
    from align.store.kept import model_content

    config = context.config
    found = measure_likelihoods(
        context,
        {name: Reader(folder, model_content(context.artifact(name))) for name, folder in sampled.folders.items()},
        {name: sampled.answers[name].candidates for name in config.models},
        sampled.prompt_token_ids,
        baseline=config.baseline,
        texts=[row.text for row in context.artifact(config.retention).rows(TextRow)] if config.retention else [],
        batch_tokens=config.batch_tokens,
        store_root=context.store_root,
        num_workers=config.num_workers,
        reused=reused,
    )
    reused.note(context, LIKELIHOODS)
    return found
