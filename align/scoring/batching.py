"""Batches of sequences of similar length, for forward passes whose results must not depend on the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


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


def map_batches(
    lengths: Sequence[int],
    batch_tokens: int,
    compute: Callable[[list[int]], torch.Tensor],
    report: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """One number per sequence, in the order of `lengths`.

    Args:
        compute: from the indices of a batch to its numbers, [batch].
        report: called with the number of sequences done.
    """
    values, done = [0.0] * len(lengths), 0
    for batch in length_sorted_batches(lengths, batch_tokens):
        for index, value in zip(batch, compute(batch).tolist(), strict=True):
            values[index] = value
        done += len(batch)
        report(done)
    return values


def pad_right(sequences: Sequence[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask` (1 on real tokens), both [batch, longest]."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=pad_token_id), attention_mask
