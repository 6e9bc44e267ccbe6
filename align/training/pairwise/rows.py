"""Rows of a pairwise stage in tokens: preferences as they are, labelled completions each beside one of another prompt."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.data.encoding import EncodedInstruction, EncodedPreference
from align.data.forms import LABEL, PAIR, SIDES
from align.data.stored_tokens import LazyRows, StoredTokens
from align.data.template import ChatFormat
from align.data.token_file import Integers
from align.errors import DataError
from align.models.folder import ModelFolder
from align.records import Drop, PromptRecord
from align.runtime.seed import derive_seed
from align.stage import StageContext
from align.store.artifact import Artifact
from align.training.pairwise.split import held_out_records
from align.training.pairwise.training_pairs import TrainingPairs
from align.training.token_store import stored_tokens


@dataclass(frozen=True)
class PairRows:
    """What was read, and what of it can be trained on."""

    pairs: TrainingPairs
    """With the numbers that the loss needs."""
    drops: Sequence[Drop]
    tokens: StoredTokens
    rows: Integers
    """Number of each pair's row among the tokens."""
    records: Iterable[PromptRecord]
    """Those of the file; `tokens.form.each` rows of tokens belong to each of them."""
    note: str = ""
    """What the user should know about how they were read."""

    def held_out(self, *, share: float, seed: int) -> Integers:
        """Which pairs are kept to measure: their places, in order."""
        if not share:
            return np.zeros(0, dtype=np.int64)
        records = self.tokens.records[self.rows] // self.tokens.form.each
        return np.flatnonzero(held_out_records(self.records, share=share, seed=seed)[records])

    def others(self, places: Integers) -> Integers:
        """The places of all other pairs."""
        return np.setdiff1d(np.arange(len(self.pairs)), places, assume_unique=True)

    def dropped(self) -> dict[str, int]:
        """Dropped rows by reason."""
        return dict(Counter(drop.drop_reason for drop in self.drops).most_common())


def read_preferences(
    context: StageContext[Any], artifact: Artifact, folder: ModelFolder, chat_format: ChatFormat, *, max_tokens: int
) -> PairRows:
    """Pairs of a chosen and a rejected completion."""
    tokens = stored_tokens(context, artifact, folder, chat_format, PAIR)
    rows, drops = tokens.read(max_tokens=max_tokens, on_invalid=context.config.on_invalid, where=artifact.where)
    return PairRows(TrainingPairs(rows), drops, tokens, rows.places, artifact.row_file(PAIR.record))


def read_labelled(
    context: StageContext[Any], artifact: Artifact, folder: ModelFolder, chat_format: ChatFormat, *, max_tokens: int
) -> PairRows:
    """Completions with column `desirable`, 1 or 0; see `beside_others`.

    Preferences are read as two completions each, the chosen one desirable and the rejected one not.

    Raises:
        DataError: if all rows have the same prompt.
    """
    form = SIDES if artifact.kind == "preferences" else LABEL
    tokens = stored_tokens(context, artifact, folder, chat_format, form)
    note = ""
    if form is SIDES:
        count = tokens.num_records
        note = f"both sides of {count // 2:,} pairs are used: {count:,} completions, half of them good"
    rows, drops = tokens.read(max_tokens=max_tokens, on_invalid=context.config.on_invalid, where=artifact.where)
    prompts = np.fromiter((_digest(row.prompt_token_ids) for row in rows), dtype=np.uint64, count=len(rows))
    if len(np.unique(prompts)) < 2:
        raise DataError(
            f"{artifact.where(None)}: all rows have the same prompt, and KTO compares completions of different prompts",
            hint="Add rows with other prompts.",
        )
    prompt, completion = (tokens.lengths[part][rows.places] for part in form.parts)
    other = other_of(prompts.tolist(), seed=context.seed)
    rejected = np.minimum(completion[other], max_tokens - prompt)
    measures = {"total": prompt + completion + rejected, "longest": prompt + np.maximum(completion, rejected)}
    pairs = LazyRows(lambda place: beside_other(rows, other, place, max_tokens=max_tokens), np.arange(len(rows)), measures)
    columns = {"desirable": tokens.number("desirable")[rows.places]}
    return PairRows(TrainingPairs(pairs, columns), drops, tokens, rows.places, artifact.row_file(form.record), note)


def _digest(token_ids: list[int]) -> int:
    """A number that another prompt has with a chance of 1 in 2^64."""
    return int.from_bytes(hashlib.blake2b(np.array(token_ids, dtype=np.int32).tobytes(), digest_size=8).digest())


def other_of(prompts: Sequence[Hashable], *, seed: int) -> Integers:
    """For each completion one that belongs to another prompt, and stands beside it as `rejected`.

    KTO estimates from it how far the policy is from the reference. The choice follows from the rows and the seed, so that the
    reference's log-probabilities can be kept.

    Args:
        prompts: what tells the prompts apart, of two or more.
    """
    order = list(range(len(prompts)))
    random.Random(derive_seed(seed, "mismatched")).shuffle(order)
    found = np.zeros(len(prompts), dtype=np.int64)
    # From the back, and once more around: the next row in the order whose prompt is another one.
    following, next_other = order[0], 0
    for place in reversed(range(2 * len(order))):
        row = order[place % len(order)]
        if prompts[row] != prompts[following]:
            next_other = following
        found[row], following = next_other, row
    return found


def beside_other(rows: Sequence[EncodedInstruction], other: Integers, place: int, *, max_tokens: int) -> EncodedPreference:
    """A completion as `chosen` and its other one as `rejected`, cut where it would be too long."""
    row, rejected = rows[place], rows[int(other[place])].completion_token_ids
    prompt = row.prompt_token_ids
    return EncodedPreference(row.id, prompt, row.completion_token_ids, rejected[: max_tokens - len(prompt)])
