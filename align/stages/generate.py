"""Sample candidates: several completions for every prompt.

Requests go to the engine as token ids, `num_candidates` per prompt in one request with a seed of its own. Work is cut into
shards whose composition the configuration fixes, so interruptions and the number of workers change no text.
In: a model, prompts. Out: candidates. Metrics: tokens, tokens per second, finish reasons, completion length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
        holder=EngineHolder(config, context.pool.gpus_each, host=context.engine_host),
        stop_requested=context.stop_requested,
        report=context.counter("generate", "shards", task.per_shard),
        pool=context.pool,
    )
    firsts = (candidate for candidate in report.candidates() if candidate.candidate_index == 0)
    context.sample(task.num_shards, (SampledText(prompt_id=row.prompt_id, completion=row.completion) for row in firsts))
    tally = CandidateTally()
    write_rows(context.output / ROWS_NAME, tally.counted(report.candidates()))
    write_rows(context.output / DROPS_NAME, drops)
    return StageOutcome(
        metrics={
            **tally.metrics(),
            "prompt_tokens": report.prompt_tokens,
            "new_tokens": report.new_tokens,
            "engine_seconds": round(report.engine_seconds, 3),
            "tokens_per_second": round(report.new_tokens / max(report.engine_seconds, 1e-9), 1),
        },
        rows_in=len(records),
        rows_out=tally.rows,
        dropped=dict(Counter(drop.drop_reason for drop in drops)),
        versions={report.engine: report.engine_version},
    )


class CandidateTally:
    """Finish reasons, lengths and the share of completions that are different texts of their prompt, counted as rows go by."""

    def __init__(self) -> None:
        self.rows = 0
        self._reasons: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._distinct = 0

    def counted(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        """The candidates as they are; those of a prompt must follow each other."""
        prompt, texts = None, set[str]()
        for candidate in candidates:
            if candidate.prompt_id != prompt:
                prompt, texts = candidate.prompt_id, set()
            self.rows += 1
            self._reasons[candidate.finish_reason] += 1
            self._lengths[candidate.completion_tokens] += 1
            self._distinct += candidate.completion not in texts
            texts.add(candidate.completion)
            yield candidate

    def metrics(self) -> dict[str, Any]:
        """Of the candidates so far, one at least."""
        return {
            "finish_reasons": dict(self._reasons),
            "completion_tokens_mean": sum(length * count for length, count in self._lengths.items()) / self.rows,
            "completion_tokens_p50": self._length_at(self.rows // 2),
            "completion_tokens_p95": self._length_at(int(self.rows * 0.95)),
            "distinct_share": self._distinct / self.rows,
        }

    def _length_at(self, place: int) -> int:
        """The length at a place, from 0, if all are sorted."""
        for length in sorted(self._lengths):
            place -= self._lengths[length]
            if place < 0:
                return length
        raise IndexError(place)
