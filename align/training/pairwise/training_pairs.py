"""The pairs of a training, from tokens that are mapped into memory: each is built when its batch is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from align.data.encoding import EncodedPreference
from align.data.stored_tokens import LazyRows
from align.training.pairwise.collator import TrainingPair

Floats = np.ndarray[Any, np.dtype[np.float64]]


class TrainingPairs(Sequence[TrainingPair]):
    """Pairs that are built when they are asked for; a slice, and `take`, are such pairs too."""

    def __init__(self, tokens: LazyRows[EncodedPreference], columns: Mapping[str, Floats] | None = None) -> None:
        """Pairs of these tokens.

        Args:
            columns: `extra_columns` of all pairs: [pairs], float64, by name.
        """
        self.tokens = tokens
        self.columns = dict(columns or {})

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> TrainingPair: ...
    @overload
    def __getitem__(self, index: slice) -> TrainingPairs: ...
    def __getitem__(self, index: int | slice) -> TrainingPair | TrainingPairs:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return TrainingPair(self.tokens[index], {name: float(values[index]) for name, values in self.columns.items()})

    def take(self, places: Any) -> TrainingPairs:
        """Those at these places."""
        return TrainingPairs(self.tokens.take(places), {name: values[places] for name, values in self.columns.items()})

    def with_columns(self, **columns: Floats) -> TrainingPairs:
        """The same pairs with further numbers."""
        return TrainingPairs(self.tokens, {**self.columns, **columns})


def pair_lengths(pairs: Sequence[TrainingPair]) -> list[int]:
    """Tokens of each pair, as `shared_length` counts them."""
    if not isinstance(pairs, TrainingPairs):
        return [len(pair) for pair in pairs]
    lengths: list[int] = pairs.tokens.measures["total"].tolist()
    return lengths
