"""Which pairs are trained on, and which are kept to measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.data.encoding import EncodedPreference
from align.records import PromptRecord
from align.runtime.seed import SEED_BITS, derive_seed

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Split:
    """Pairs to train on, and pairs kept to measure; no prompt is on both sides."""

    train: Sequence[EncodedPreference]
    held_out: Sequence[EncodedPreference]


def held_out_records(records: Iterable[PromptRecord], *, share: float, seed: int) -> Flags:
    """Which records are kept out: about `share` of the prompts. It follows from the prompt's text and the seed alone.

    Returns:
        [records], true for those.
    """

    def is_held_out(record: PromptRecord) -> bool:
        text = "\n".join(f"{message.role}: {message.text}" for message in record.prompt)
        return bool(derive_seed(seed, "held_out", text) / 2**SEED_BITS < share)

    return np.fromiter(map(is_held_out, records), dtype=bool)
