"""What a comparison reads from its models' likelihoods: KL to the baseline, and perplexity on plain texts.

Texts are cut into the same parts whoever reads them, so that the numbers do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from align.models.folder import ModelFolder
from align.models.load import differing_tokens
from align.records import Candidate
from align.runtime.context import RunContext
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

ROWS_AT_ONCE = 512
"""Texts of a part, and more where the last ones share a prompt, which is then read once."""


@dataclass
class Likelihoods:
    """What a comparison reads from its models' likelihoods."""

    kl: dict[str, dict[str, float]] = field(default_factory=dict)
    """Model → prompt id → KL to the baseline in nats."""
    perplexity: dict[str, float | None] = field(default_factory=dict)
    """Of plain texts, by model."""


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
    folders: Mapping[str, ModelFolder],
    answers: Mapping[str, Sequence[Candidate]],
    prompt_token_ids: Mapping[str, Mapping[str, list[int]]],
    *,
    baseline: str,
    texts: Sequence[str],
    batch_tokens: int,
    num_workers: int = 1,
) -> Likelihoods:
    """KL to the baseline on each model's own answers, and perplexity on plain texts.

    Args:
        folders: by model, the baseline's among them.
        answers: by model.
        prompt_token_ids: model → prompt id → token ids: every model reads a prompt through its own template.
        texts: for the perplexity, which is None without any.
        num_workers: that share the work, each with a model of its own.
    """
    result = Likelihoods(perplexity=dict.fromkeys(folders))
    own = {name: [(prompt_token_ids[name][row.prompt_id], row.completion_token_ids) for row in answers[name]] for name in answers}
    comparable = {name for name, folder in folders.items() if name != baseline and _same_tokens(folder, folders[baseline])}
    readings = []
    for name, folder in folders.items():
        if texts and folder.encoder_decoder:  # it is not defined which part the encoder reads and which the decoder writes
            context.note(f"{name}: no perplexity, which is not defined for an encoder–decoder model on plain text")
        elif texts:
            readings.append(Reading(name, None, text_rows(folder, texts)))
        readings += [
            Reading(name, author, own[author]) for author in (sorted(comparable) if name == baseline else {name} & comparable)
        ]
    logps = _read(context, LikelihoodReader(folders, batch_tokens), readings, num_workers)
    by_reader = {}
    for reading, found in zip(readings, logps, strict=True):
        by_reader[reading.model, reading.author] = found
        if reading.author is None:
            result.perplexity[reading.model] = perplexity_of(reading.rows, found)
    for name in folders:
        if name not in comparable:
            continue
        differences: dict[str, list[float]] = {}
        for row, mine, theirs in zip(answers[name], by_reader[name, name], by_reader[baseline, name], strict=True):
            differences.setdefault(row.prompt_id, []).append(mine - theirs)
        result.kl[name] = {prompt_id: sum(values) / len(values) for prompt_id, values in differences.items()}
    return result


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
