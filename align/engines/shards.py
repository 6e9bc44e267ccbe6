"""Sampling in shards that survive interruptions.

A shard is a fixed slice of the prompts, sampled in one engine call and written as one file with its hash beside it. What is in
a shard, and every seed in it, follows from the prompts and the configuration alone: neither an interruption, nor the order of
the shards, nor the number of workers that share them changes a text.
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from align.config.architecture import is_encoder_decoder
from align.config.sections import Generation, GenerationEngine
from align.data.encoding import Where, encode_prompts
from align.data.template import ChatFormat
from align.engines.open import architecture_of, open_engine
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings, TextEngine
from align.errors import Interrupted, RecipeError, StageError
from align.models.folder import context_tokens
from align.records import Candidate, Drop, Prompt
from align.runtime.process import end_with_parent
from align.store.artifact import read_rows
from align.store.shard import read_seal, shard_path, write_shard

WORKER_POLL_SECONDS = 0.2
SEED_BITS = 31


@dataclass(frozen=True)
class SamplingTask:
    """Everything that decides the candidates of one model.

    `prompt_token_ids[i]` are the tokens of `prompts[i]`; `stop_token_ids` end a completion.
    """

    model_folder: Path
    prompts: Sequence[Prompt]
    prompt_token_ids: Sequence[list[int]]
    stop_token_ids: tuple[int, ...]
    config: Generation
    seed: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.prompts) // self.config.shard_prompts)

    @property
    def max_model_tokens(self) -> int:
        """Tokens of the longest prompt and completion together; never more than the model can see."""
        return prompt_room(self.model_folder, self.config) + self.config.max_completion_tokens

    def settings(self) -> SamplingSettings:
        return SamplingSettings(
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
            max_completion_tokens=self.config.max_completion_tokens,
            num_candidates=self.config.num_candidates,
            stop_token_ids=self.stop_token_ids,
        )


def prepare_task(
    prompts: Sequence[Prompt], chat_format: ChatFormat, config: Generation, *, model_folder: Path, seed: int, where: Where
) -> tuple[SamplingTask, list[Drop]]:
    """Encode prompts for one model; the task, and the prompts that do not fit it.

    Raises:
        DataError: if a prompt does not fit and `config.on_invalid` is error, or none fits.
    """
    room = prompt_room(model_folder, config)
    encoded = encode_prompts(prompts, chat_format, max_prompt_tokens=room, on_invalid=config.on_invalid, where=where)
    by_id = {prompt.id: prompt for prompt in prompts}
    task = SamplingTask(
        model_folder=model_folder,
        prompts=[by_id[row.id] for row in encoded.rows],
        prompt_token_ids=[row.prompt_ids for row in encoded.rows],
        stop_token_ids=(chat_format.eos_token_id,),
        config=config,
        seed=seed,
    )
    return task, encoded.drops


@dataclass(frozen=True)
class SamplingReport:
    """What sampling did: the candidates in prompt order, the engine really used, tokens and seconds spent inside it."""

    candidates: list[Candidate]
    engine: str
    engine_version: str
    new_tokens: int
    engine_seconds: float


class TokenLimits(Protocol):
    """What says how long prompts and completions may be."""

    @property
    def max_prompt_tokens(self) -> int: ...

    @property
    def max_completion_tokens(self) -> int: ...


class EngineHolder:
    """Keeps one engine alive from model to model, and only exchanges the weights where the architecture is the same."""

    def __init__(self, config: GenerationEngine) -> None:
        self._config = config
        self._engine: TextEngine | None = None
        self._architecture = ""
        self._model_folder: Path | None = None
        self._max_model_tokens = 0

    def engine_for(self, model_folder: Path, max_model_tokens: int) -> TextEngine:
        if self._engine is not None and (
            self._architecture != architecture_of(model_folder) or self._max_model_tokens < max_model_tokens
        ):
            self.close()
        if self._engine is None:
            self._engine = open_engine(
                self._config.engine, model_folder, dtype=self._config.dtype, max_model_tokens=max_model_tokens
            )
            self._architecture, self._max_model_tokens = architecture_of(model_folder), max_model_tokens
        elif self._model_folder != model_folder:
            self._engine.load_weights(model_folder)
        self._model_folder = model_folder
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self._model_folder = None


def prompt_room(model_folder: Path, sampling: TokenLimits) -> int:
    """Most tokens a prompt may have, so that it and its completion fit into what the model can see.

    An encoder–decoder model sees its prompt with one part and its completion with the other: each has all the room.

    Raises:
        RecipeError: if max_completion_tokens alone fills it.
    """
    context = context_tokens(model_folder)
    room = min(sampling.max_prompt_tokens, context - sampling.max_completion_tokens)
    if is_encoder_decoder(model_folder) and sampling.max_completion_tokens <= context:
        room = min(sampling.max_prompt_tokens, context)
    if room < 1:
        raise RecipeError(
            f"{model_folder}: the model sees {context} tokens, max_completion_tokens is {sampling.max_completion_tokens}: "
            "there is no room for a prompt",
            hint="Lower max_completion_tokens.",
        )
    return room


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Seed of a prompt's request: depends on the run's seed and the prompt's id, not on its place in the file."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (1 << SEED_BITS)


def sample_shard(task: SamplingTask, index: int, holder: EngineHolder, decode: Callable[[list[int]], str], folder: Path) -> None:
    """Sample one shard and write it; its seal (hash, engine, tokens, seconds) comes last."""
    chosen = slice(index * task.config.shard_prompts, (index + 1) * task.config.shard_prompts)
    prompts, token_ids = task.prompts[chosen], task.prompt_token_ids[chosen]
    engine = holder.engine_for(task.model_folder, task.max_model_tokens)
    requests = [
        GenerationRequest(list(ids), prompt_seed(task.seed, prompt.id)) for prompt, ids in zip(prompts, token_ids, strict=True)
    ]
    started = time.perf_counter()
    outputs = engine.generate(requests, task.settings())
    seconds = time.perf_counter() - started
    rows = [
        make_candidate(prompt, candidate_index, completion, request.seed + candidate_index, decode, task.stop_token_ids)
        for prompt, request, completions in zip(prompts, requests, outputs, strict=True)
        for candidate_index, completion in enumerate(completions)
    ]
    tokens = sum(row.completion_tokens for row in rows)
    write_shard(shard_path(folder, index), rows, engine=engine.name, version=engine.version, tokens=tokens, seconds=seconds)


def make_candidate(
    prompt: Prompt, index: int, sampled: SampledCompletion, seed: int, decode: Callable[[list[int]], str], stops: tuple[int, ...]
) -> Candidate:
    """The record of a sampled completion; its text is without the token in `stops` that ended it."""
    ids = sampled.token_ids
    text_ids = ids[:-1] if ids and ids[-1] in stops else ids
    return Candidate(
        prompt_id=prompt.id,
        candidate_index=index,
        prompt=prompt.prompt,
        reference=prompt.reference,
        completion=decode(text_ids),
        completion_token_ids=ids,
        completion_tokens=len(ids),
        finish_reason=sampled.finish_reason,
        seed=seed,
    )


def decoder(model_folder: Path) -> Callable[[list[int]], str]:
    """What turns the tokens of a model into text."""
    from align.models.load import load_tokenizer

    tokenizer = load_tokenizer(model_folder)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def sample(
    task: SamplingTask,
    folder: Path,
    *,
    holder: EngineHolder,
    stop_requested: Callable[[], int | None],
    report: Callable[[int, int], None],
) -> SamplingReport:
    """Sample every shard that is not there yet, then return the candidates of all.

    Args:
        folder: where shards are kept between attempts.
        stop_requested: asked between shards; a signal's number stops with `Interrupted`.
        report: called with (finished shards, all shards).
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(task.num_shards) if read_seal(shard_path(folder, index)) is None]
    finished = task.num_shards - len(missing)
    report(finished, task.num_shards)
    workers = min(task.config.num_workers, len(missing))
    if workers > 1:
        holder.close()
        _sample_in_processes(
            task, missing, workers, folder, stop_requested, lambda done: report(finished + done, task.num_shards)
        )
    elif missing:
        decode = decoder(task.model_folder)
        for done, index in enumerate(missing, start=1):
            _check_stop(stop_requested)
            sample_shard(task, index, holder, decode, folder)
            report(finished + done, task.num_shards)
    return _collect(task, folder)


def _collect(task: SamplingTask, folder: Path) -> SamplingReport:
    candidates: list[Candidate] = []
    engines: dict[tuple[str, str], None] = {}
    tokens, seconds = 0, 0.0
    for index in range(task.num_shards):
        path = shard_path(folder, index)
        seal = read_seal(path)
        if seal is None:
            raise StageError(f"{path}: the shard changed while it was being used", hint="Run the same command again.")
        candidates.extend(read_rows(path, Candidate))
        engines[seal["engine"], seal["version"]] = None
        tokens, seconds = tokens + seal["tokens"], seconds + seal["seconds"]
    expected = {(prompt.id, index) for prompt in task.prompts for index in range(task.config.num_candidates)}
    found = [(candidate.prompt_id, candidate.candidate_index) for candidate in candidates]
    if len(found) != len(expected) or set(found) != expected:
        raise StageError(
            f"{folder}: {len(found)} candidates were sampled where {len(expected)} are needed, or under other ids",
            hint="Remove this folder and run the command again.",
        )
    names = sorted(engines)
    return SamplingReport(candidates, "+".join(name for name, _ in names), "+".join(v for _, v in names), tokens, seconds)


def _check_stop(stop_requested: Callable[[], int | None]) -> None:
    signal_number = stop_requested()
    if signal_number is not None:
        raise Interrupted("Stopped between two shards; the finished ones are kept.", signal_number=signal_number)


def _sample_in_processes(
    task: SamplingTask,
    missing: Sequence[int],
    workers: int,
    folder: Path,
    stop_requested: Callable[[], int | None],
    report: Callable[[int], None],
) -> None:
    """Share the missing shards among processes, each with its own engine (and its own GPU where there are several)."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_shard_worker, args=(task, list(missing[number::workers]), folder, number), daemon=True)
        for number in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            _check_stop(stop_requested)
            report(sum(read_seal(shard_path(folder, index)) is not None for index in missing))
            failed = [process for process in processes if process.exitcode not in (None, 0)]
            if failed:
                raise StageError(f"A sampling process ended with code {failed[0].exitcode}", hint="The log says why.")
            time.sleep(WORKER_POLL_SECONDS)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    if any(process.exitcode != 0 for process in processes):
        raise StageError("A sampling process failed", hint="The log says why.")


def _shard_worker(task: SamplingTask, indices: Sequence[int], folder: Path, number: int) -> None:
    end_with_parent()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    torch = importlib.import_module("torch")
    devices = torch.cuda.device_count() if os.path.exists("/dev/nvidia0") else 0
    if devices > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % devices] if visible[0] else str(number % devices)
    holder = EngineHolder(task.config)
    decode = decoder(task.model_folder)
    for index in indices:
        sample_shard(task, index, holder, decode, folder)
