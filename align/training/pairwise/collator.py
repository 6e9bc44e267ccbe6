"""Pairs as tensors: the prompt once with both completions behind it, or every side as a row of its own.

Shared prompt, several pairs in a row, positions restarting so that either completion continues the prompt:

    tokens     p0 p1 p2  c0 c1  r0 r1 r2  p0 …
    positions   0  1  2   3  4   3  4  5   0
    pair        0  0  0   0  0   0  0  0   1
    side        prompt   chosen  rejected

A token sees what comes before it in its own pair, of its own side or of the prompt: the rejected completion never sees the
chosen one. Krell et al. 2021 (packing), Wang and Hegde 2024 (prefix sharing). Both forms give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from align.data.encoding import EncodedPreference
from align.training.packing import pack_first_fit

BatchForm = Literal["shared_prompt", "padded"]
PROMPT, CHOSEN, REJECTED = 0, 1, 2
NO_PAIR = -1
"""Pair of the padding."""


@dataclass(frozen=True)
class TrainingPair:
    """A pair in tokens, and the numbers that its loss needs besides them."""

    tokens: EncodedPreference
    extra_columns: Mapping[str, float] = field(default_factory=dict)
    """`reference_chosen_logps` and `reference_rejected_logps` (DPO), `margin` (reward model); each is [pairs] in a batch."""

    def __len__(self) -> int:
        return shared_length(self.tokens)


def shared_length(pair: EncodedPreference) -> int:
    """Tokens of a pair whose prompt is there once."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


class PairCollator:
    """Pairs → a batch of tensors. `form` decides how the tokens are laid out, and nothing else.

    A batch holds, with P pairs and S sequences (chosen of every pair, then rejected, then the prompts where they are asked for):

    - `input_ids`, `position_ids`: [rows, seq].
    - `pair_ids`, `side_ids`: [rows, seq], shared prompt only; see `attention_of_pairs`.
    - `attention_mask`: [rows, seq], 1 on real tokens, padded form only.
    - `hidden_index`, `target_ids`, `sequence_index`: [targets]. The hidden state at the flat place `hidden_index` predicts the
      token `target_ids`, which counts for sequence `sequence_index`. The first tokens of chosen and rejected are predicted by
      one state, that of the prompt's last token.
    - `last_index`: [2 P], flat place of the last token of each side.
    - `token_counts`: [S], targets of every sequence.
    - every name in the pairs' `extra_columns`: [P], float32.
    """

    def __init__(
        self, *, form: BatchForm, pad_token_id: int, row_tokens: int, with_prompts: bool = False, multiple_of: int = 1
    ) -> None:
        """
        Args:
            row_tokens: tokens of a row of the shared form; a longer pair widens its batch's rows.
            with_prompts: make targets of the prompts' tokens too, but for the first, which nothing predicts.
            multiple_of: rows are padded to a multiple of it, which some GPU kernels need.
        """
        self.form = form
        self.with_prompts = with_prompts
        self.pad_token_id = pad_token_id
        self._row_tokens = row_tokens
        self._multiple_of = multiple_of

    def __call__(self, pairs: Sequence[TrainingPair]) -> dict[str, Tensor]:
        tokens = [pair.tokens for pair in pairs]
        batch = (self._shared if self.form == "shared_prompt" else self._padded)(tokens)
        names = pairs[0].extra_columns
        extra = {name: torch.tensor([pair.extra_columns[name] for pair in pairs], dtype=torch.float32) for name in names}
        return {**batch, **extra}

    def _shared(self, pairs: Sequence[EncodedPreference]) -> dict[str, Tensor]:
        lengths = [shared_length(pair) for pair in pairs]
        rows = pack_first_fit(lengths, max(self._row_tokens, *lengths))
        width = self._round_up(max(sum(lengths[index] for index in row) for row in rows))
        grid = _Grid(len(rows), width, self.pad_token_id)
        pair_ids = torch.full((len(rows) * width,), NO_PAIR)
        side_ids = torch.full_like(pair_ids, PROMPT)
        places: dict[int, tuple[int, int, int]] = {}
        for number, row in enumerate(rows):
            start = number * width
            for index in row:
                pair = pairs[index]
                prompt_tokens = len(pair.prompt_ids)
                chosen = grid.write(start, pair.prompt_ids)
                rejected = grid.write(chosen, pair.chosen_ids, position=prompt_tokens)
                end = grid.write(rejected, pair.rejected_ids, position=prompt_tokens)
                pair_ids[start:end] = index
                side_ids[chosen:rejected] = CHOSEN
                side_ids[rejected:end] = REJECTED
                places[index] = (start, chosen, rejected)
                start = end
        targets = _Targets()
        for index, pair in enumerate(pairs):
            _, chosen, _ = places[index]
            targets.add(chosen - 1, chosen, pair.chosen_ids)
        for index, pair in enumerate(pairs):
            _, chosen, rejected = places[index]
            targets.add(chosen - 1, rejected, pair.rejected_ids)
        starts = [places[index][0] for index in range(len(pairs))]
        more = {"pair_ids": pair_ids.view(grid.shape), "side_ids": side_ids.view(grid.shape)}
        return {**grid.tensors(), **more, **self._finish(targets, pairs, starts)}

    def _padded(self, pairs: Sequence[EncodedPreference]) -> dict[str, Tensor]:
        sides = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs] + [(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
        width = self._round_up(max(len(prompt) + len(completion) for prompt, completion in sides))
        grid = _Grid(len(sides), width, self.pad_token_id)
        attention_mask = torch.zeros(grid.shape, dtype=torch.long)
        targets = _Targets()
        for row, (prompt, completion) in enumerate(sides):
            start = grid.write(row * width, prompt)
            grid.write(start, completion, position=len(prompt))
            attention_mask[row, : len(prompt) + len(completion)] = 1
            targets.add(start - 1, start, completion)
        starts = [row * width for row in range(len(pairs))]
        return {**grid.tensors(), "attention_mask": attention_mask, **self._finish(targets, pairs, starts)}

    def _finish(self, targets: _Targets, pairs: Sequence[EncodedPreference], starts: Sequence[int]) -> dict[str, Tensor]:
        ends = torch.tensor(targets.ends)
        if self.with_prompts:
            for start, pair in zip(starts, pairs, strict=True):
                targets.add(start, start + 1, pair.prompt_ids[1:])
        return {**targets.tensors(), "last_index": ends}

    def _round_up(self, tokens: int) -> int:
        return -(-tokens // self._multiple_of) * self._multiple_of


class _Grid:
    """`input_ids` and `position_ids` of a batch, written at flat places."""

    def __init__(self, rows: int, width: int, pad_token_id: int) -> None:
        self.shape = (rows, width)
        self._input_ids = torch.full((rows * width,), pad_token_id)
        self._position_ids = torch.zeros(rows * width, dtype=torch.long)

    def write(self, start: int, ids: Sequence[int], *, position: int = 0) -> int:
        """Write tokens whose first has `position`; returns the place behind them."""
        end = start + len(ids)
        self._input_ids[start:end] = torch.tensor(ids)
        self._position_ids[start:end] = torch.arange(position, position + len(ids))
        return end

    def tensors(self) -> dict[str, Tensor]:
        return {"input_ids": self._input_ids.view(self.shape), "position_ids": self._position_ids.view(self.shape)}


class _Targets:
    """Which hidden state predicts which token of which sequence. Sequences are numbered as they are added."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self._sources: list[int] = []
        self._targets: list[int] = []
        self._counts: list[int] = []

    def add(self, before: int, start: int, ids: Sequence[int]) -> None:
        """A sequence of `ids` at the flat places from `start`; what stands at `before` predicts its first token."""
        if ids:
            self._sources += [before, *range(start, start + len(ids) - 1)]
        self._targets += ids
        self._counts.append(len(ids))
        self.ends.append(start + len(ids) - 1)

    def tensors(self) -> dict[str, Tensor]:
        counts = torch.tensor(self._counts)
        return {
            "hidden_index": torch.tensor(self._sources),
            "target_ids": torch.tensor(self._targets),
            "sequence_index": torch.repeat_interleave(torch.arange(len(self._counts)), counts),
            "token_counts": counts,
        }


def attention_of_pairs(pair_ids: Tensor, side_ids: Tensor) -> Tensor:
    """[rows, 1, seq, seq], True where the token of the third dimension sees the one of the fourth.

    Padding sees padding only, so that no row of the mask is empty, which would give NaN.
    """
    seq = pair_ids.shape[1]
    same_pair = pair_ids[:, :, None] == pair_ids[:, None, :]
    own_side_or_prompt = (side_ids[:, None, :] == PROMPT) | (side_ids[:, :, None] == side_ids[:, None, :])
    causal = torch.ones(seq, seq, dtype=torch.bool, device=pair_ids.device).tril()
    return (same_pair & own_side_or_prompt & causal)[:, None]
