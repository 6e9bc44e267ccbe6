"""Rows of a pairwise stage in tokens: preferences as they are, labelled completions each beside one of another prompt."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align.config.sections import OnInvalid
from align.data.encoding import Encoded, EncodedInstruction, EncodedPreference, encode_labelled, encode_preferences
from align.data.template import ChatFormat
from align.errors import DataError
from align.records import Labelled, Preference
from align.runtime.seed import derive_seed
from align.store.artifact import Artifact


@dataclass(frozen=True)
class PairRows:
    """What was read, and what of it can be trained on."""

    records: Sequence[Any]
    """Preferences or labelled rows."""
    encoded: Encoded[EncodedPreference]
    columns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Numbers that the loss needs, by the id of the pair."""
    note: str = ""
    """What the user should know about how they were read."""


def read_preferences(artifact: Artifact, chat_format: ChatFormat, *, max_tokens: int, on_invalid: OnInvalid) -> PairRows:
    """Pairs of a chosen and a rejected completion."""
    records = artifact.rows(Preference)
    encoded = encode_preferences(records, chat_format, max_tokens=max_tokens, on_invalid=on_invalid, where=artifact.where)
    return PairRows(records, encoded)


def read_labelled(artifact: Artifact, chat_format: ChatFormat, *, max_tokens: int, on_invalid: OnInvalid, seed: int) -> PairRows:
    """Completions with column `desirable`, 1 or 0; see `beside_others`.

    Preferences are read as two completions each, the chosen one desirable and the rejected one not.

    Raises:
        DataError: if all rows have the same prompt.
    """
    note = ""
    if artifact.kind == "preferences":
        records = [side for pair in artifact.rows(Preference) for side in sides_of(pair)]
        note = f"both sides of {len(records) // 2:,} pairs are used: {len(records):,} completions, half of them good"
    else:
        records = artifact.rows(Labelled)
    encoded = encode_labelled(records, chat_format, max_tokens=max_tokens, on_invalid=on_invalid, where=artifact.where)
    if len({tuple(row.prompt_token_ids) for row in encoded.rows}) < 2:
        raise DataError(
            f"{artifact.where(None)}: all rows have the same prompt, and KTO compares completions of different prompts",
            hint="Add rows with other prompts.",
        )
    rows = beside_others(encoded.rows, max_tokens=max_tokens, seed=seed)
    columns = {record.id: {"desirable": float(record.desirable)} for record in records}
    return PairRows(records, Encoded(rows, encoded.drops), columns, note)


def sides_of(pair: Preference) -> list[Labelled]:
    """A pair as two labelled completions."""

    def side(name: str, completion: str, desirable: bool) -> Labelled:
        row_id = f"{pair.id}/{name}"
        return Labelled(id=row_id, line=pair.line, file=pair.file, prompt=pair.prompt, completion=completion, desirable=desirable)

    return [side("chosen", pair.chosen, True), side("rejected", pair.rejected, False)]


def beside_others(rows: Sequence[EncodedInstruction], *, max_tokens: int, seed: int) -> list[EncodedPreference]:
    """Each completion as `chosen`, and as `rejected` one that belongs to another prompt, cut where it would be too long.

    KTO estimates from the latter how far the policy is from the reference. The choice follows from the rows and the seed, so that
    the reference's log-probabilities can be kept.

    Args:
        rows: with two prompts or more.
    """
    order = list(range(len(rows)))
    random.Random(derive_seed(seed, "mismatched")).shuffle(order)
    other_of: dict[int, int] = {}
    # From the back, and once more around: the next row in the order whose prompt is another one.
    following, next_other = order[0], 0
    for place in reversed(range(2 * len(order))):
        row = order[place % len(order)]
        if rows[row].prompt_token_ids != rows[following].prompt_token_ids:
            next_other = following
        other_of[row], following = next_other, row
    return [
        EncodedPreference(
            row.id,
            row.prompt_token_ids,
            row.completion_token_ids,
            rows[other_of[index]].completion_token_ids[: max_tokens - len(row.prompt_token_ids)],
        )
        for index, row in enumerate(rows)
    ]
