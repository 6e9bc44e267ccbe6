"""Several models answer the same prompts with the same seeds, and a scorer scores the answers: for stages that choose a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from align.config.reference import RowsReference
from align.config.row_need import RowNeed
from align.config.sections import Generation, PointwiseScorer
from align.models.chat_format import load_format
from align.records import Drop, Prompt, ScoredCandidate
from align.stage import StageConfig, StageContext
from align.store.artifact import read_rows
from align.store.shard import read_seal, shard_path, write_shard

if TYPE_CHECKING:
    from align.models.folder import ModelFolder
    from align.records import Candidate

SCORE_NAME = "score"
ANSWERS_NAME = "answers"


class ChoiceConfig(Generation, StageConfig):
    """Fields of stages that choose a model by the scores of its answers."""

    prompts: RowsReference[Prompt]
    """Validation prompts: neither those of training nor those of the comparison."""
    scorer: PointwiseScorer
    """What scores the completions: the name of a reward model stage, or {rules: …}."""
    num_candidates: int = Field(default=1, ge=1)
    """Completions per prompt and model; scores are averaged per prompt."""
    bootstrap_resamples: int = Field(default=10_000, ge=100)
    """Resamples of the paired bootstrap over prompts."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a scorer or a loss; numbers depend on it by rounding only (below 1e-5)."""

    def row_needs(self) -> Iterator[RowNeed]:
        from align.scoring.rules import prompt_needs

        yield from prompt_needs("prompts", {("scorer",): self.scorer})


@dataclass
class ScoredAnswers:
    """Every model's answers with their scores, and what they were sampled with."""

    rows: dict[str, list[ScoredCandidate]] = field(default_factory=dict)
    """By model, in the order in which the models were given."""
    drops: dict[str, Drop] = field(default_factory=dict)
    """Prompts that do not fit, by id."""
    engine: str = ""
    engine_version: str = ""
    prompt_tokens: int = 0
    """Every prompt once for every model."""
    new_tokens: int = 0
    engine_seconds: float = 0.0


def answer_and_score(
    context: StageContext[ChoiceConfig], folders: Mapping[str, ModelFolder], prompts: Sequence[Prompt], work: Path
) -> ScoredAnswers:
    """Every model answers the prompts, with one engine whose weights are exchanged; then the answers are scored.

    Args:
        folders: by what progress calls the model.
        work: what an interrupted attempt has sampled and scored there is kept. It must belong to these models and prompts.
    """
    result = ScoredAnswers()
    answers = _sample_all(context, folders, prompts, work, result)
    result.rows = _score_all(context, answers, work)
    return result


def scores_by_prompt(rows: Sequence[ScoredCandidate]) -> dict[str, float | None]:
    """Mean over the finite scores of a prompt's completions; None where there is none."""
    found: dict[str, list[float]] = {}
    for row in rows:
        score = row.scores[SCORE_NAME]
        found.setdefault(row.prompt_id, []).extend([] if score is None else [score])
    return {prompt_id: sum(values) / len(values) if values else None for prompt_id, values in found.items()}


def _sample_all(
    context: StageContext[ChoiceConfig],
    folders: Mapping[str, ModelFolder],
    prompts: Sequence[Prompt],
    work: Path,
    result: ScoredAnswers,
) -> dict[str, list[Candidate]]:
    from align.engines.holder import EngineHolder
    from align.engines.shards import sample
    from align.engines.task import prepare_task

    config, answers = context.config, {}
    where = context.artifact(config.prompts).where
    holder = EngineHolder(config, context.pool.gpus_each, host=context.engine_host)
    for number, (model, folder) in enumerate(folders.items(), start=1):
        chat_format = load_format(folder)
        task, drops = prepare_task(prompts, chat_format, config, model_folder=folder, seed=context.seed, where=where)
        report = sample(
            task,
            work / ANSWERS_NAME / f"{number}",
            holder=holder,
            stop_requested=context.stop_requested,
            report=context.counter(f"answers of {model}", "shards", task.per_shard),
            pool=context.pool,
        )
        answers[model] = list(report.candidates())
        result.drops.update((drop.id, drop) for drop in drops)
        result.engine, result.engine_version = report.engine, report.engine_version
        result.prompt_tokens += report.prompt_tokens
        result.new_tokens += report.new_tokens
        result.engine_seconds += report.engine_seconds
    # Scoring loads models too, and needs the memory.
    holder.close()
    return answers


def _score_all(
    context: StageContext[ChoiceConfig], answers: Mapping[str, list[Candidate]], work: Path
) -> dict[str, list[ScoredCandidate]]:
    from align.scoring.scorers import ScorerSet, reward_model_folders

    config = context.config
    scorers = {SCORE_NAME: config.scorer}
    scorer_set = ScorerSet(scorers, reward_model_folders(scorers, context.artifacts), batch_tokens=config.batch_tokens)
    scored = {}
    for number, (model, candidates) in enumerate(answers.items(), start=1):
        shard, count = shard_path(work / "scores", number), context.counter(f"score {model}", "scores")
        if read_seal(shard) is None:
            total = len(candidates)
            write_shard(shard, scorer_set.score(candidates, lambda done, count=count, total=total: count(done, total)))  # type: ignore[misc]
        scored[model] = list(read_rows(shard, ScoredCandidate))
    scorer_set.close()
    return scored
