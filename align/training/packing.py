"""Several short samples in one row, exact: positions restart with every sample, and attention stays inside it.

First-fit decreasing: the longest sample goes first into the first row with room (Johnson 1973: at most 11/9 of the optimum).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, overload

import numpy as np
import torch

from align.data.encoding import EncodedInstruction
from align.losses.logps import IGNORED_LABEL


@dataclass(frozen=True)
class TrainingSample:
    """Tokens of one sample; the loss is taken on completions only."""

    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    earlier: tuple[tuple[list[int], list[int]], ...] = ()
    """Turns in front of the prompt, each with what stands before its completion, and the completion."""

    @property
    def turns(self) -> list[tuple[list[int], list[int]]]:
        return [*self.earlier, (self.prompt_token_ids, self.completion_token_ids)]

    def __len__(self) -> int:
        return sum(len(prompt) + len(completion) for prompt, completion in self.turns)


def pack_first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the samples in each row. Every index is in exactly one row; no row holds more than `capacity` tokens.

    Raises:
        ValueError: if one sample is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    # Lengths only fall, so a row with room for this sample has room for the next one too, until it takes another. `with_room`
    # has those rows, lowest number first; `waiting` has the others, most room first, until samples are short enough for them.
    # Every sample moves at most one row in each direction: O(n log n), where a search through all rows would be O(n²).
    with_room: list[int] = []
    waiting: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"sample {index} has {length} tokens, a row holds {capacity}")
        while waiting and -waiting[0][0] >= length:
            heappush(with_room, heappop(waiting)[1])
        if not with_room:
            with_room.append(len(rows))
            rows.append([])
            room.append(capacity)
        row = with_room[0]
        rows[row].append(index)
        room[row] -= length
        if room[row] < length:
            heappush(waiting, (-room[row], heappop(with_room)))
    return rows


def pack_rows(lengths: Sequence[int], capacity: int, longest_shared_row: int | None) -> list[list[int]]:
    """As `pack_first_fit`, but a row above `longest_shared_row` tokens holds a single sample."""
    if longest_shared_row is None or longest_shared_row >= capacity:
        return pack_first_fit(lengths, capacity)
    alone = [index for index, length in enumerate(lengths) if length > longest_shared_row]
    others = [index for index, length in enumerate(lengths) if length <= longest_shared_row]
    shared = pack_first_fit([lengths[index] for index in others], longest_shared_row)
    return [*([index] for index in alone), *([others[place] for place in row] for row in shared)]


class PackedRows(Sequence[dict[str, list[int]]]):
    """Rows of samples as `build_row` makes them, each when it is asked for."""

    def __init__(self, samples: Sequence[EncodedInstruction], rows: Sequence[Sequence[int]]) -> None:
        """Rows of these samples.

        Args:
            rows: numbers of the samples in each row.
        """
        self._samples = samples
        # Millions of lists would take gigabytes.
        self._ends = np.cumsum([len(row) for row in rows])
        self._numbers = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> dict[str, list[int]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, list[int]]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        rows = (self._samples[number] for number in self.samples_of(index))
        return build_row([TrainingSample(row.prompt_token_ids, row.completion_token_ids, row.earlier) for row in rows])

    def samples_of(self, row: int) -> list[int]:
        """Numbers of the samples in a row."""
        place = range(len(self))[row]
        numbers: list[int] = self._numbers[self._ends[place - 1] if place else 0 : self._ends[place]].tolist()
        return numbers


def build_row(samples: Sequence[TrainingSample]) -> dict[str, list[int]]:
    """`input_ids`, `labels` (-100 outside completions) and `position_ids` of samples laid end to end."""
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for sample in samples:
        start = len(row["labels"])
        for prompt, completion in sample.turns:
            row["input_ids"] += prompt + completion
            row["labels"] += [IGNORED_LABEL] * len(prompt) + completion
        # The first token of a sample is predicted from the sample before it; it is never a label.
        row["labels"][start] = IGNORED_LABEL
        row["position_ids"] += range(len(sample))
    return row


class PackedCollator:
    """Pads rows on the right. No attention mask is passed: samples are kept apart where positions restart.

    Every padding token gets position 0, so no real token sees it.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._fill = {"input_ids": pad_token_id, "labels": IGNORED_LABEL, "position_ids": 0}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            key: torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows]) for key, fill in self._fill.items()
        }
