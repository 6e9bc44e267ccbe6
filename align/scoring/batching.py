"""Batches of sequences of similar length, for forward passes whose results must not depend on the batch."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from align.runtime.device import free_memory, out_of_memory

T = TypeVar("T")


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens (one sequence at least), longest first.

    Longest first: a batch that does not fit into memory fails at the start and not at the end.
    """
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first sequence of a batch is its longest, so every later one is padded to it.
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(index)
    if batch:
        yield batch


def run_batches(
    lengths: Sequence[int], batch_tokens: int, compute: Callable[[list[int]], T], *, note: Callable[[str], None] = print
) -> Iterator[tuple[list[int], T]]:
    """Each batch, as indices, and what `compute` returns for it.

    A batch that memory is not enough for is computed in smaller ones, and so are those that follow; only a single sequence that
    does not fit is an error.

    Args:
        batch_tokens: see `length_sorted_batches`.
        note: takes a line about that. What a stage prints is in the run's log.
    """
    waiting = deque(length_sorted_batches(lengths, batch_tokens))
    while waiting:
        batch = waiting.popleft()
        try:
            result = compute(batch)
        except Exception as error:
            problem = out_of_memory(error)
            if problem is None or len(batch) == 1:
                raise
        else:
            yield batch, result
            continue
        # Not in the handler: the error holds the frames of the pass, and they its tensors.
        free_memory()
        batch_tokens = lengths[batch[0]] * len(batch) // 2
        left = [*batch, *itertools.chain.from_iterable(waiting)]
        smaller = length_sorted_batches([lengths[index] for index in left], batch_tokens)
        waiting = deque([left[place] for place in places] for places in smaller)
        note(f"out of memory with {len(batch):,} sequences in a forward pass; going on with {len(waiting[0]):,} ({problem})")


def map_batches(
    lengths: Sequence[int],
    batch_tokens: int,
    compute: Callable[[list[int]], torch.Tensor],
    report: Callable[[int], None] = lambda done: None,
    *,
    units: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """One number per sequence, in their order.

    Args:
        lengths: tokens of each sequence, or of each unit.
        compute: from the indices of a batch to its numbers, [batch].
        report: called with the number of sequences done.
        units: indices of sequences that stay together in a batch, next to each other, such as those of one prompt.
    """
    units = [[index] for index in range(len(lengths))] if units is None else units
    values, done = [0.0] * sum(map(len, units)), 0

    def members(batch: list[int]) -> list[int]:
        return [index for unit in batch for index in units[unit]]

    for batch, numbers in run_batches(lengths, batch_tokens, lambda batch: compute(members(batch)).tolist()):
        for index, value in zip(members(batch), numbers, strict=True):
            values[index] = value
        done += len(numbers)
        report(done)
    return values


def pad_right(sequences: Sequence[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask` (1 on real tokens), both [batch, longest]."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=pad_token_id), attention_mask
