"""Keep the model whose completions score highest.

Every model answers the same validation prompts with the same seeds, a scorer scores the completions, and the model with the
highest mean score is kept. `sweep:` of a recipe ends in this stage: the models are its trials. With `first_prompts`, models leave
by successive halving (Jamieson and Talwalkar 2016), whose rungs are numbers of prompts.
In: models, prompts, a scorer. Out: one of the models.
Metrics: the model that was kept, and of every model its mean score and its difference to the kept one, with 95 % intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.config.base import Problem
from align.config.checks import check_choice
from align.config.graph import RecipeGraph
from align.config.reference import ModelReference
from align.engines.scored import ANSWERS_NAME, SCORE_NAME, ChoiceConfig, ScoredAnswers, answer_and_score, scores_by_prompt
from align.errors import StageError
from align.models.folder import ModelFolder, refuse_encoder_decoder
from align.records import Drop, Prompt, ScoredCandidate
from align.runtime.seed import derive_seed
from align.selection.checkpoint import scored_everywhere
from align.selection.halving import better_half, rungs
from align.stage import StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, MODEL_FOLDER, write_rows

if TYPE_CHECKING:
    from align.report.statistics import FloatArray

VERSION = 1


class Config(ChoiceConfig):
    """Keep the model whose completions score highest."""

    models: dict[str, ModelReference] = Field(min_length=1)
    """Models to choose from, by what results call them. In a sweep these are the trials, by their settings."""
    first_prompts: int | None = Field(default=None, ge=2)
    """Successive halving: all models answer this many prompts, the better half twice as many, and so on; the last two answer
    all. Default: every model answers all prompts."""

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        models = fields.get("models")
        named = list(models.items()) if isinstance(models, dict) else []
        for index, (key, model) in enumerate(named):
            if isinstance(model, str) and model in [other for _, other in named[:index]]:
                yield Problem(("models", key), f"'{model}' is here twice")

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        yield from check_choice(fields, graph)


def run(context: StageContext[Config]) -> StageOutcome:
    """Every model answers and is scored, rung by rung; the best by score is kept."""
    config = context.config
    sources = {label: context.artifact(name) for label, name in config.models.items()}
    folders = {label: ModelFolder.of(source) for label, source in sources.items()}
    for label, folder in folders.items():
        refuse_encoder_decoder("select_model", sources[label], folder)
    prompts = context.artifact(config.prompts).rows(Prompt)
    # Files may be sorted by subject or language, and the first prompts must stand for all.
    order = sorted(prompts, key=lambda prompt: derive_seed(context.seed, "rung", prompt.id)) if config.first_prompts else prompts
    rows: dict[str, list[ScoredCandidate]] = {label: [] for label in folders}
    scores: dict[str, dict[str, float]] = {}
    """Of each model, by prompt, from the last rung that it was on."""
    drops: dict[str, Drop] = {}
    counts, going_on = Counter[str](), list(folders)
    answers = ScoredAnswers()
    for rung, part in enumerate(rungs(order, config.first_prompts), start=1):
        answers = answer_and_score(context, {label: folders[label] for label in going_on}, part, context.work / f"rung-{rung}")
        for label in going_on:
            rows[label] += answers.rows[label]
        counts.update({name: getattr(answers, name) for name in ("prompt_tokens", "new_tokens", "engine_seconds")})
        counts["scored_completions"] += sum(map(len, answers.rows.values()))
        # Models must be compared on the same prompts, so a prompt that one has no score for is left out for all of a rung.
        found = scored_everywhere({label: scores_by_prompt(rows[label]) for label in going_on}, what="model")
        drops |= {drop.id: drop for drop in found.drops} | answers.drops
        scores |= found.scores
        if not found.scores[going_on[0]]:
            raise StageError(
                f"{context.name}: there is no prompt for which every model has a finite score",
                hint="Score a few completions with the score stage to see what is wrong with the scorer.",
            )
        means = {label: _mean(found.scores[label]) for label in going_on}
        selected, going_on = max(means, key=means.__getitem__), better_half(means)
    for number, label in enumerate(folders, start=1):
        write_rows(context.output / ANSWERS_NAME / f"{number}.jsonl", rows[label])
    write_rows(context.output / DROPS_NAME, list(drops.values()))
    context.known_hashes.link_tree(folders[selected].path, context.output / MODEL_FOLDER)
    context.note(f"of {len(folders)} models, {selected} scores highest: {means[selected]:.4g} on {len(scores[selected])} prompts")
    return StageOutcome(
        metrics={
            "selected": selected,
            "prompts": len(scores[selected]),
            "models": _intervals(context, scores, selected),
            **{name: round(count, 3) for name, count in counts.items()},
        },
        rows_in=len(prompts),
        rows_out=len(prompts) - len(drops),
        dropped=dict(Counter(drop.drop_reason for drop in drops.values())),
        versions={answers.engine: answers.engine_version},
    )


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _intervals(context: StageContext[Config], scores: Mapping[str, Mapping[str, float]], selected: str) -> dict[str, Any]:
    """Of every model: its score, and its difference to the selected one on the prompts that both answered."""
    import numpy as np

    from align.report.statistics import paired_bootstrap

    seed = derive_seed(context.seed, "bootstrap")

    def interval(values: FloatArray) -> dict[str, Any]:
        return paired_bootstrap(values, seed=seed, resamples=context.config.bootstrap_resamples).to_json()

    shown = {}
    for label, by_prompt in scores.items():
        own = np.array(list(by_prompt.values()))
        best = np.array([scores[selected][prompt_id] for prompt_id in by_prompt])
        shown[label] = {SCORE_NAME: interval(own), "over_selected": interval(own - best), "prompts": len(own)}
    return shown
