"""Sample candidates: several completions for every prompt.

Requests go to the engine as token ids, `num_candidates` per prompt in one request with a seed of its own. Work is cut into
shards whose composition the configuration fixes, so interruptions and the number of workers change no text.
In: a model, prompts. Out: candidates. Metrics: tokens, tokens per second, finish reasons, completion length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from align.config.reference import ModelReference, RowsReference
from align.config.sections import Generation
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.records import Candidate, Prompt
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, ROWS_NAME, write_rows

VERSION = 5


class Config(Generation, StageConfig):
    """Sample candidates from a model."""

    carries: ClassVar[Mapping[str, str]] = {"reference": "prompts", "fields": "prompts"}

    model: ModelReference
    """Model to sample from."""
    prompts: RowsReference[Prompt]
    """Prompts to continue."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Encode the prompts, sample the missing shards, join all shards."""
    # Imported late, as in every stage: recipes are read with this module and must not wait for torch.
    from align.engines.holder import EngineHolder
    from align.engines.shards import sample
    from align.engines.task import prepare_task
    from align.runtime.events import SampledText

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.prompts)
    folder = ModelFolder.of(source)
    chat_format = load_format(folder, where=source.where(None))
    records = data.rows(Prompt)
    task, drops = prepare_task(records, chat_format, config, model_folder=folder, seed=context.seed, where=data.where)
    report = sample(
        task,
        context.work / "shards",
        holder=EngineHolder(config, context.pool.gpus_each),
        stop_requested=context.stop_requested,
        report=context.counter("generate", "shards", task.per_shard),
        pool=context.pool,
    )
    firsts = (candidate for candidate in report.candidates if candidate.candidate_index == 0)
    context.sample(task.num_shards, (SampledText(prompt_id=row.prompt_id, completion=row.completion) for row in firsts))
    write_rows(context.output / ROWS_NAME, report.candidates)
    write_rows(context.output / DROPS_NAME, drops)
    return StageOutcome(
        metrics={
            **describe(report.candidates),
            "prompt_tokens": report.prompt_tokens,
            "new_tokens": report.new_tokens,
            "engine_seconds": round(report.engine_seconds, 3),
            "tokens_per_second": round(report.new_tokens / max(report.engine_seconds, 1e-9), 1),
        },
        rows_in=len(records),
        rows_out=len(report.candidates),
        dropped=dict(Counter(drop.drop_reason for drop in drops)),
        versions={report.engine: report.engine_version},
    )


def describe(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Finish reasons, lengths and the share of completions that are different texts of their prompt."""
    lengths = sorted(candidate.completion_tokens for candidate in candidates)
    texts = {(candidate.prompt_id, candidate.completion) for candidate in candidates}
    return {
        "finish_reasons": dict(Counter(candidate.finish_reason for candidate in candidates)),
        "completion_tokens_mean": sum(lengths) / len(lengths),
        "completion_tokens_p50": lengths[len(lengths) // 2],
        "completion_tokens_p95": lengths[int(len(lengths) * 0.95)],
        "distinct_share": len(texts) / len(candidates),
    }
