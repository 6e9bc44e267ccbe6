"""Sampling in shards that survive interruptions.

A shard is a fixed slice of the prompts, sampled in one engine call and written as one file with its hash beside it. What is in
a shard, and every seed in it, follows from the prompts and the configuration alone: neither an interruption, nor the order of
the shards, nor the number of workers that share them changes a text.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from align.data.template import ChatFormat
from align.engines.holder import EngineHolder
from align.engines.protocol import BrokenLogits, GenerationRequest, SampledCompletion
from align.engines.task import SamplingTask
from align.errors import Interrupted, StageError
from align.models.chat_format import load_format
from align.records import Candidate, Prompt
from align.runtime.executor import Inline, executor_for
from align.runtime.pool import LOCAL, Pool
from align.runtime.profile import phase
from align.runtime.seed import derive_seed
from align.store.artifact import read_rows
from align.store.shard import read_seal, shard_path, write_shard


@dataclass(frozen=True)
class SamplingReport:
    """What sampling did: where the candidates are, the engine really used, tokens and seconds spent inside it."""

    task: SamplingTask
    folder: Path
    engine: str
    engine_version: str
    new_tokens: int
    engine_seconds: float
    prompt_tokens: int
    """Of the prompts, each counted once."""

    def candidates(self) -> Iterator[Candidate]:
        """In the order of the prompts, those of a prompt in theirs. They are read from the shards, one at a time.

        Raises:
            StageError: if a shard does not hold the candidates of its prompts.
        """
        for index in range(self.task.num_shards):
            path = shard_path(self.folder, index)
            rows, prompts = list(read_rows(path, Candidate)), self.task.prompts_of(index)
            first = self.task.first_candidate
            indices = range(first, first + self.task.config.num_candidates)
            expected = [(prompt.id, index) for prompt in prompts for index in indices]
            if [(row.prompt_id, row.candidate_index) for row in rows] != expected:
                raise StageError(
                    f"{path}: {len(rows)} candidates were sampled, but {len(expected)} are needed, or their ids differ",
                    hint=f"Remove {self.folder} and run the command again.",
                )
            yield from rows


@dataclass
class ShardSampler:
    """Samples the shard with a given number and writes it; the seal (hash, engine, tokens, seconds) is written last."""

    task: SamplingTask
    folder: Path
    holder: EngineHolder

    @cached_property
    def _format(self) -> ChatFormat:
        return load_format(self.task.model_folder)

    def __call__(self, index: int) -> None:
        task = self.task
        prompts, token_ids = task.prompts_of(index), task.prompt_token_ids[task.slice_of(index)]
        engine = self.holder.engine_for(task.model_folder, task.max_model_tokens)
        # By id, not by place: more prompts in the file change no other prompt's candidates.
        seeds = [derive_seed(task.seed, "sample", prompt.id) + task.first_candidate for prompt in prompts]
        requests = [GenerationRequest(list(ids), seed) for ids, seed in zip(token_ids, seeds, strict=True)]
        started = time.perf_counter()
        try:
            outputs = engine.generate(requests, task.settings())
        except BrokenLogits as error:
            raise StageError(f"{error.message} ({prompts[error.request].id!r})", hint=error.hint) from error
        seconds = time.perf_counter() - started
        rows = [
            make_candidate(prompt, task.first_candidate + number, completion, request.seed + number, self._format)
            for prompt, request, completions in zip(prompts, requests, outputs, strict=True)
            for number, completion in enumerate(completions)
        ]
        tokens = sum(row.completion_tokens for row in rows)
        shard = shard_path(self.folder, index)
        write_shard(shard, rows, engine=engine.name, version=engine.version, tokens=tokens, seconds=seconds)


def make_candidate(prompt: Prompt, index: int, sampled: SampledCompletion, seed: int, chat_format: ChatFormat) -> Candidate:
    """The record of a sampled completion; its text leaves out the token that ended it."""
    ids = sampled.token_ids
    return Candidate(
        prompt_id=prompt.id,
        candidate_index=index,
        prompt=prompt.prompt,
        reference=prompt.reference,
        fields=prompt.fields,
        completion=chat_format.sampled_text(ids),
        completion_token_ids=ids,
        completion_tokens=len(ids),
        finish_reason=sampled.finish_reason,
        seed=seed,
    )


def sample(
    task: SamplingTask,
    folder: Path,
    *,
    holder: EngineHolder,
    stop_requested: Callable[[], int | None],
    report: Callable[[int, int], None],
    pool: Pool = LOCAL,
) -> SamplingReport:
    """Sample every missing shard, then look at the seals of all.

    Args:
        folder: where shards are kept between attempts.
        stop_requested: called between shards; a signal's number stops with `Interrupted`.
        report: called with (finished shards, all shards).
        pool: where the engines are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(task.num_shards) if read_seal(shard_path(folder, index)) is None]
    finished = itertools.count(task.num_shards - len(missing))
    report(next(finished), task.num_shards)
    executor = executor_for(task.config.num_workers, len(missing), gpus_each=pool.gpus_each, pool=pool, shared=folder)
    if not isinstance(executor, Inline):
        holder.close()  # the workers start their own engines and need the memory
    with phase("sample"):
        executor.map(
            ShardSampler(task, folder, holder),
            missing,
            on_done=lambda index, _: report(next(finished), task.num_shards),
            check_stop=lambda: _check_stop(stop_requested),
        )
    return _collect(task, folder)


def _collect(task: SamplingTask, folder: Path) -> SamplingReport:
    """What the seals of the shards say."""
    engines: dict[tuple[str, str], None] = {}
    tokens, seconds = 0, 0.0
    for index in range(task.num_shards):
        path = shard_path(folder, index)
        # Read again: a shard may come from an earlier run, or from another process.
        seal = read_seal(path)
        if seal is None:
            raise StageError(f"{path}: the shard changed while it was being used", hint="Run the same command again.")
        engines[seal["engine"], seal["version"]] = None
        tokens, seconds = tokens + seal["tokens"], seconds + seal["seconds"]
    # More than one, if sampling was resumed with another engine or version.
    names = sorted(engines)
    engine, version = "+".join(name for name, _ in names), "+".join(v for _, v in names)
    return SamplingReport(task, folder, engine, version, tokens, seconds, prompt_tokens=sum(map(len, task.prompt_token_ids)))


def _check_stop(stop_requested: Callable[[], int | None]) -> None:
    signal_number = stop_requested()
    if signal_number is not None:
        raise Interrupted("Stopped between two shards; the finished ones are kept.", signal_number=signal_number)
