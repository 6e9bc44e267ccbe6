"""A model's answers to prompts, in the store under everything that decides them: comparisons that need the same sample once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from align.engines.holder import EngineHolder
from align.engines.open import engine_for_model, resolve_dtype
from align.engines.shards import sample
from align.engines.task import SamplingTask
from align.records import Candidate
from align.runtime.context import RunContext
from align.runtime.device import device_kind
from align.store.artifact import ROWS_NAME, Entry, read_rows, write_rows
from align.store.fingerprint import canonical_json
from align.store.kept import ANSWERS, KeptResult, Reused, versions_of

ANSWERS_VERSION = 1
"""Raised whenever the same key would give other texts than before."""
CandidateT = TypeVar("CandidateT", bound=Candidate)


@dataclass(frozen=True)
class KeptAnswers:
    """Answers, and what they were sampled with."""

    candidates: list[Candidate]
    """In the order of the prompts."""
    digest: str
    """sha256 of the candidates."""
    engines: Mapping[str, str]
    """Version by engine."""
    new_tokens: int
    engine_seconds: float


def answers_key(task: SamplingTask, model: str, *, gpus_each: int = 1) -> dict[str, Any]:
    """Everything that decides the texts of a task. Prompts count as the tokens that the model reads, in their order.

    Args:
        model: content of the model; see `model_content`.
        gpus_each: GPUs that an engine is divided over.
    """
    engine = engine_for_model(task.config.engine, task.model_folder)
    rows = hashlib.sha256()
    for prompt, ids in zip(task.prompts, task.prompt_token_ids, strict=True):
        rows.update(canonical_json([prompt.model_dump(mode="json"), ids]).encode() + b"\n")
    return {
        "model": model,
        "prompts": rows.hexdigest(),
        "settings": task.config.text_settings(),
        "first_candidate": task.first_candidate,
        "stop_token_ids": list(task.stop_token_ids),
        # The engine's context decides its batches.
        "max_model_tokens": task.max_model_tokens,
        "seed": task.seed,
        "engine": {
            "name": engine,
            "dtype": resolve_dtype(task.config.dtype),
            "device": device_kind(),
            "gpus": gpus_each,
            **versions_of("torch", "transformers", *([engine] if engine != "transformers" else [])),
        },
    }


def kept_answers(
    result: KeptResult, task: SamplingTask, holder: EngineHolder, context: RunContext, reused: Reused
) -> KeptAnswers:
    """The answers of a task, from the store if it has them; else they are sampled, in shards that survive interruptions.

    Args:
        result: of the key from `answers_key`; `result.what` names the answers in notes and progress.
        reused: takes what was found.
    """

    def write(entry: Entry) -> dict[str, Any]:
        report = sample(
            task,
            entry.work / "shards",
            holder=holder,
            stop_requested=context.stop_requested,
            report=context.counter(result.what, "shards", task.per_shard),
            pool=context.pool,
        )
        write_rows(entry.path / ROWS_NAME, report.candidates())
        facts = {"new_tokens": report.new_tokens, "engine_seconds": report.engine_seconds}
        versions = {report.engine: report.engine_version}
        return {
            "seed": task.seed,
            "metrics": facts,
            "versions": versions,
            "rows_out": len(task.prompts) * task.config.num_candidates,
        }

    with result.held(context):
        manifest = result.find(context)
        if manifest is not None:
            reused.found(ANSWERS, result.what.removeprefix(f"{ANSWERS} of "), manifest)
        else:
            manifest = result.make(write)
            reused.made(manifest)
        candidates = list(read_rows(result.entry.path / ROWS_NAME, Candidate))
    return KeptAnswers(
        candidates,
        manifest.files[ROWS_NAME].sha256,
        manifest.versions,
        manifest.metrics["new_tokens"],
        manifest.metrics["engine_seconds"],
    )


def by_prompt(*lists: Sequence[CandidateT]) -> list[CandidateT]:
    """Candidates of the same prompts in one list, prompt by prompt."""
    found: dict[str, list[CandidateT]] = {}
    for candidates in lists:
        for candidate in candidates:
            found.setdefault(candidate.prompt_id, []).append(candidate)
    return [candidate for candidates in found.values() for candidate in candidates]
