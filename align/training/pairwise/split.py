"""Which pairs are trained on, and which are kept to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.data.encoding import EncodedPreference
from align.records import PromptRecord
from align.runtime.seed import SEED_BITS, derive_seed


@dataclass(frozen=True)
class Split:
    """Pairs to train on, and pairs kept to measure; no prompt is on both sides."""

    train: list[EncodedPreference]
    held_out: list[EncodedPreference]


def split_by_prompt(records: Sequence[PromptRecord], encoded: Sequence[EncodedPreference], *, share: float, seed: int) -> Split:
    """Keep about `share` of the prompts out. Which ones follows from the prompt's text and the seed, not from the order."""
    prompts = {record.id: "\n".join(f"{message.role}: {message.text}" for message in record.prompt) for record in records}
    split = Split([], [])
    for row in encoded:
        drawn = derive_seed(seed, "held_out", prompts[row.id]) / 2**SEED_BITS
        (split.held_out if drawn < share else split.train).append(row)
    return split
