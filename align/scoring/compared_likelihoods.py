"""What a comparison reads from its models' likelihoods: KL to the baseline, and perplexity on plain texts.

Texts are cut into the same parts whoever reads them, so that the numbers do not depend on the number of workers. Each reading is
kept in the store under everything that decides it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from align.models.folder import ModelFolder
from align.models.load import differing_tokens
from align.records import Candidate
from align.runtime.context import RunContext
from align.runtime.device import device_kind, frozen_dtype
from align.runtime.executor import executor_for
from align.runtime.profile import phase
from align.scoring.likelihood import (
    LikelihoodModel,
    Seq2SeqLikelihoodModel,
    open_likelihood_model,
    perplexity_of,
    text_rows,
)
from align.scoring.shared_prompt import Row
from align.store.artifact import ROWS_NAME, Entry, Manifest, read_rows, write_rows
from align.store.fingerprint import canonical_json
from align.store.kept import KeptResult, Reused, versions_of

LIKELIHOODS_VERSION = 1
"""Raised whenever the same key would give other numbers than before."""
LIKELIHOODS = "likelihoods"
ROWS_AT_ONCE = 512
"""Texts of a part, and more where the last ones share a prompt, which is then read once."""


@dataclass
class Likelihoods:
    """What a comparison reads from its models' likelihoods."""

    kl: dict[str, dict[str, float]] = field(default_factory=dict)
    """Model → prompt id → KL to the baseline in nats."""
    perplexity: dict[str, float | None] = field(default_factory=dict)
    """Of plain texts, by model."""


class ReadText(BaseModel):
    """What one model says of one text."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    logp: float
    """Nats, summed over its tokens."""
    tokens: int
    """That something predicts."""


@dataclass(frozen=True)
class Reader:
    """A model of a comparison."""

    folder: ModelFolder
    content: str
    """See `model_content`."""


@dataclass(frozen=True)
class Reading:
    """Texts that one model reads."""

    model: str
    author: str | None
    """The model that wrote them; None for the plain texts."""
    rows: Sequence[Row]


@dataclass(frozen=True)
class ReadingPart:
    """Some rows of a reading, one behind the other."""

    model: str
    reading: int
    """Its number."""
    first: int
    """Place of its first row in the reading."""
    rows: Sequence[Row]


@dataclass
class LikelihoodReader:
    """Reads parts of readings, with one model in memory at a time."""

    folders: Mapping[str, ModelFolder]
    batch_tokens: int
    _loaded: tuple[str, LikelihoodModel | Seq2SeqLikelihoodModel] | None = None

    def __call__(self, part: ReadingPart) -> list[float]:
        if self._loaded is None or self._loaded[0] != part.model:
            self.close()
            self._loaded = part.model, open_likelihood_model(self.folders[part.model], batch_tokens=self.batch_tokens)
        return self._loaded[1].completion_logps(part.rows)

    def close(self) -> None:
        """Free the memory of the model."""
        if self._loaded is not None:
            self._loaded[1].close()
        self._loaded = None


@phase("score")
def measure_likelihoods(
    context: RunContext,
    readers: Mapping[str, Reader],
    answers: Mapping[str, Sequence[Candidate]],
    prompt_token_ids: Mapping[str, Mapping[str, list[int]]],
    *,
    baseline: str,
    texts: Sequence[str],
    batch_tokens: int,
    store_root: Path,
    num_workers: int = 1,
    reused: Reused | None = None,
) -> Likelihoods:
    """KL to the baseline on each model's own answers, and perplexity on plain texts.

    Args:
        readers: by model, the baseline among them.
        answers: by model.
        prompt_token_ids: model → prompt id → token ids: every model reads a prompt through its own template.
        texts: for the perplexity, which is None without any.
        store_root: where readings are kept.
        num_workers: that share the work, each with a model of its own.
        reused: takes what was found in the store.
    """
    reused = Reused() if reused is None else reused
    folders = {name: reader.folder for name, reader in readers.items()}
    result = Likelihoods(perplexity=dict.fromkeys(folders))
    own = {name: [(prompt_token_ids[name][row.prompt_id], row.completion_token_ids) for row in answers[name]] for name in answers}
    comparable = {name for name, folder in folders.items() if name != baseline and _same_tokens(folder, folders[baseline])}
    wanted: list[tuple[str, str | None]] = []
    for name, folder in folders.items():
        if texts and folder.encoder_decoder:  # it is not defined which part the encoder reads and which the decoder writes
            context.note(f"{name}: no perplexity, which is not defined for an encoder–decoder model on plain text")
        elif texts:
            wanted.append((name, None))
        wanted += [(name, author) for author in (sorted(comparable) if name == baseline else {name} & comparable)]
    digests = {author: _digest(texts if author is None else own[author]) for _, author in wanted}
    results = {
        (name, author): KeptResult(
            store_root,
            LIKELIHOODS,
            LIKELIHOODS_VERSION,
            likelihoods_key(readers[name].content, digests[author], batch_tokens=batch_tokens),
            f"{LIKELIHOODS} of {'plain texts' if author is None else f'answers of {author}'} under {name}",
        )
        for name, author in wanted
    }

    def rows_of(name: str, author: str | None) -> Sequence[Row]:
        return text_rows(folders[name], texts) if author is None else own[author]

    read = _kept(context, LikelihoodReader(folders, batch_tokens), results, rows_of, num_workers, reused)
    for (name, author), rows in read.items():
        if author is None:
            tokens = sum(row.tokens for row in rows)
            result.perplexity[name] = perplexity_of(tokens, [row.logp for row in rows], where=str(folders[name].path))
    for name in folders:
        if name not in comparable:
            continue
        differences: dict[str, list[float]] = {}
        for row, mine, theirs in zip(answers[name], read[name, name], read[baseline, name], strict=True):
            differences.setdefault(row.prompt_id, []).append(mine.logp - theirs.logp)
        result.kl[name] = {prompt_id: sum(values) / len(values) for prompt_id, values in differences.items()}
    return result


def likelihoods_key(reader: str, rows: str, *, batch_tokens: int) -> dict[str, Any]:
    """Everything that decides what a model says of some texts.

    Args:
        reader: content of the model; see `model_content`.
        rows: digest of the tokens, or of the plain texts, which the reader's tokenizer makes into tokens.
        batch_tokens: decides the rounding.
    """
    arithmetic = {"device": device_kind(), "dtype": frozen_dtype(), **versions_of("torch", "transformers", "tokenizers")}
    return {"reader": reader, "rows": rows, "batch_tokens": batch_tokens, "rows_at_once": ROWS_AT_ONCE, **arithmetic}


def _digest(rows: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(canonical_json(row).encode() + b"\n")
    return found.hexdigest()


Place = tuple[str, str | None]
"""Model that reads, model that wrote; None for the plain texts."""


def _kept(
    context: RunContext,
    reader: LikelihoodReader,
    results: Mapping[Place, KeptResult],
    rows_of: Callable[[str, str | None], Sequence[Row]],
    num_workers: int,
    reused: Reused,
) -> dict[Place, list[ReadText]]:
    """What the store has of the readings; the others are read, by all workers together, and kept."""
    # Equal models have equal readings: the first stands for all.
    places = {result.key: place for place, result in reversed(list(results.items()))}
    missing: dict[str, Reading] = {}
    with contextlib.ExitStack() as locks:
        # In one order everywhere, so that two runs never wait for each other.
        for key in sorted(places):
            locks.enter_context(results[places[key]].held(context))
        for place, result in results.items():
            if places[result.key] != place:
                continue
            if (manifest := result.find(context)) is not None:
                reused.found(LIKELIHOODS, place[0], manifest)
            else:
                missing[result.key] = Reading(*place, rows_of(*place))
        began = time.monotonic()
        logps = _read(context, reader, list(missing.values()), num_workers) if missing else []
        each = (time.monotonic() - began) / max(1, sum(len(reading.rows) for reading in missing.values()))
        for reading, found in zip(missing.values(), logps, strict=True):
            reused.made(_keep(results[reading.model, reading.author], reading, found, seconds=each * len(found)))
        read = {key: list(read_rows(results[place].entry.path / ROWS_NAME, ReadText)) for key, place in places.items()}
    return {place: read[result.key] for place, result in results.items()}


def _keep(result: KeptResult, reading: Reading, logps: Sequence[float], *, seconds: float) -> Manifest:
    # Nothing predicts the first token of a text without a prompt.
    counted = [len(completion) - (not prompt) for prompt, completion in reading.rows]

    def write(entry: Entry) -> dict[str, Any]:
        rows = (ReadText(logp=logp, tokens=tokens) for logp, tokens in zip(logps, counted, strict=True))
        write_rows(entry.path / ROWS_NAME, rows)
        return {"rows_out": len(logps)}

    return result.make(write, seconds=seconds)


def _read(context: RunContext, reader: LikelihoodReader, readings: Sequence[Reading], num_workers: int) -> list[list[float]]:
    """Log-probabilities of the rows of every reading."""
    found = [[0.0] * len(reading.rows) for reading in readings]
    parts = [part for number, reading in enumerate(readings) for part in _parts(number, reading)]
    counts = {reading.model: context.counter(f"likelihoods of {reading.model}", "texts") for reading in readings}
    totals = {name: sum(len(reading.rows) for reading in readings if reading.model == name) for name in counts}
    done = dict.fromkeys(counts, 0)

    def keep(part: ReadingPart, logps: list[float]) -> None:
        found[part.reading][part.first : part.first + len(logps)] = logps
        done[part.model] += len(logps)
        counts[part.model](done[part.model], totals[part.model])

    executor = executor_for(num_workers, len(parts), gpus_each=1, pool=context.pool, shared=context.work)
    try:
        executor.map(reader, parts, on_done=keep, check_stop=context.check_stop)
    finally:
        reader.close()
    return found


def _parts(number: int, reading: Reading) -> Iterator[ReadingPart]:
    first, rows = 0, reading.rows
    for end in range(1, len(rows) + 1):
        shares_prompt = end < len(rows) and bool(rows[end][0]) and rows[end][0] == rows[end - 1][0]
        if end == len(rows) or (end - first >= ROWS_AT_ONCE and not shares_prompt):
            yield ReadingPart(reading.model, number, first, rows[first:end])
            first = end


def _same_tokens(first: ModelFolder, second: ModelFolder) -> bool:
    """Log-probabilities are of tokens; they can be subtracted only where both models have the same, and read prompts alike."""
    same_reader = bool(first.encoder_decoder) == bool(second.encoder_decoder)
    return same_reader and not differing_tokens(first, second)
