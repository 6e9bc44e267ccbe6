"""Completions of the same prompt in one row, behind a prompt that is computed once.

    tokens      p0 p1 p2 a0 a1  b0 b1 b2  q0 q1 …
    positions    0  1  2  3  4   3  4  5   0  1 …
    segments    first           second    third      the second continues the first three tokens of the first

Every completion sees its prompt and itself (`align.models.attention`), so the numbers are those of rows of their own, but for
rounding. Juravsky et al. 2024 (Hydragen) share prompts so in decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.models.attention import takes_segments
from align.models.head import last_hidden_states
from align.models.segment import Segment, mask_of
from align.models.virtual_tokens import virtual_tokens_of

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of a completion; one of them may be empty."""


def row_units(model: Any, rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """Numbers of the rows that are computed together behind one prompt, if the model can, and otherwise each row alone.

    Args:
        model: a model as `align.models.load` gives it.
        batch_tokens: a unit has no more tokens, unless a single row has.
    """
    if not takes_segments(model) or virtual_tokens_of(model) is not None:
        return [[number] for number in range(len(rows))]
    units: list[list[int]] = []
    open_units: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    for number, (prompt, completion) in enumerate(rows):
        key = tuple(prompt)
        unit = open_units.get(key) if prompt else None
        if unit is None or tokens[unit] + len(completion) > batch_tokens:
            open_units[key], unit = len(units), len(units)
            units.append([])
            tokens.append(len(prompt))
        units[unit].append(number)
        tokens[unit] += len(completion)
    return units


def unit_tokens(rows: Sequence[Row], unit: Sequence[int]) -> int:
    """Tokens of a unit, with those of its prompt once."""
    return len(rows[unit[0]][0]) + sum(len(rows[number][1]) for number in unit)


@dataclass(frozen=True)
class SharedRow:
    """Some rows laid end to end. A row whose prompt is that of the row before it continues that prompt."""

    input_ids: Tensor
    """[1, tokens]"""
    position_ids: Tensor
    segments: Tensor
    """As from `mask_of`."""
    last: Tensor
    """[rows] place of the last token of each."""
    sources: Tensor
    """[targets] places of the states that predict the tokens of completions. Of a completion without a prompt, nothing predicts
    the first."""
    targets: Tensor
    """[targets] those tokens."""
    numbers: Tensor
    """[targets] which row each belongs to."""

    def states(self, model: Any) -> Tensor:
        """[tokens, width] hidden states that the model's head reads."""
        device = model.get_input_embeddings().weight.device
        tokens = {"input_ids": self.input_ids.to(device), "position_ids": self.position_ids.to(device)}
        return last_hidden_states(model, **tokens, attention_mask=self.segments)[0]


def lay_out(rows: Sequence[Row]) -> SharedRow:
    """The rows in one, in this order."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    last: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    numbers: list[int] = []
    before, first, prompt_end = None, 0, 0
    for number, (prompt, completion) in enumerate(rows):
        if not prompt or prompt != before:
            before, first, prompt_end = prompt, len(segments), len(ids) + len(prompt) - 1
            segments.append(Segment(len(prompt) + len(completion)))
            ids += prompt
            positions += range(len(prompt))
        elif completion:
            segments.append(Segment(len(completion), first, len(prompt)))
        start = len(ids)
        ids += completion
        positions += range(len(prompt), len(prompt) + len(completion))
        last.append(len(ids) - 1 if completion else prompt_end)
        predicting = [*([prompt_end] if prompt else []), *range(start, len(ids) - 1)][: len(completion)]
        sources += predicting
        targets += completion[len(completion) - len(predicting) :]
        numbers += [number] * len(predicting)
    return SharedRow(
        torch.tensor(ids)[None],
        torch.tensor(positions)[None],
        mask_of(segments),
        *(torch.tensor(places, dtype=torch.long) for places in (last, sources, targets, numbers)),
    )
