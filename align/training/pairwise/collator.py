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
from typing import Literal, NamedTuple

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
    """Tokens of a pair with the prompt counted once."""
    return len(pair.prompt_token_ids) + len(pair.chosen_token_ids) + len(pair.rejected_token_ids)


class PairCollator:
    """Pairs → a batch of tensors. `form` decides how the tokens are laid out, and nothing else.

    A batch holds, with P pairs and S sequences (chosen of every pair, then rejected, then with `with_prompts` the prompts):

    - `input_ids`, `position_ids`: [rows, seq].
    - `pair_ids`, `side_ids`: [rows, seq], shared prompt only; see `align.training.pairwise.visibility`.
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
        """Make a collator of one form of batch.

        Args:
            row_tokens: tokens of a row of the shared form; a longer pair widens its batch's rows.
            with_prompts: prompt tokens are targets too, except the first, which nothing predicts.
            multiple_of: rows are padded to a multiple of it, which some GPU kernels need.
        """
        self.form = form
        self.with_prompts = with_prompts
        self.pad_token_id = pad_token_id
        self._row_tokens = row_tokens
        self._multiple_of = multiple_of

    def __call__(self, pairs: Sequence[TrainingPair]) -> dict[str, Tensor]:
        tokens = [pair.tokens for pair in pairs]
        names = pairs[0].extra_columns
        extra = {name: torch.tensor([pair.extra_columns[name] for pair in pairs], dtype=torch.float32) for name in names}
        return {**self._lay_out(self._rows_of_segments(tokens), len(pairs)), **extra}

    def _rows_of_segments(self, pairs: Sequence[EncodedPreference]) -> list[list[_Segment]]:
        prompts = [_Segment(i, PROMPT, pair.prompt_token_ids, 0) for i, pair in enumerate(pairs)]
        chosen = [_Segment(i, CHOSEN, pair.chosen_token_ids, len(pair.prompt_token_ids)) for i, pair in enumerate(pairs)]
        rejected = [_Segment(i, REJECTED, pair.rejected_token_ids, len(pair.prompt_token_ids)) for i, pair in enumerate(pairs)]
        if self.form == "padded":
            return [[prompts[side.pair], side] for side in (*chosen, *rejected)]
        lengths = [shared_length(pair) for pair in pairs]
        rows = pack_first_fit(lengths, max(self._row_tokens, *lengths))
        return [[part for number in row for part in (prompts[number], chosen[number], rejected[number])] for row in rows]

    def _lay_out(self, rows: Sequence[Sequence[_Segment]], num_pairs: int) -> dict[str, Tensor]:
        longest = max(sum(len(segment.token_ids) for segment in row) for row in rows)
        width = -(-longest // self._multiple_of) * self._multiple_of
        fills = {"input_ids": self.pad_token_id, "position_ids": 0, "pair_ids": NO_PAIR, "side_ids": PROMPT}
        grid = {name: torch.full((len(rows) * width,), fill) for name, fill in fills.items()}
        # Where every sequence starts, and the place whose hidden state predicts its first token.
        placed: dict[tuple[int, int], tuple[_Segment, int, int]] = {}
        prompt_end = 0
        for number, row in enumerate(rows):
            start = number * width
            for segment in row:
                end = start + len(segment.token_ids)
                grid["input_ids"][start:end] = torch.tensor(segment.token_ids)
                grid["position_ids"][start:end] = torch.arange(segment.position, segment.position + end - start)
                grid["pair_ids"][start:end] = segment.pair
                grid["side_ids"][start:end] = segment.side
                if segment.side == PROMPT:
                    prompt_end = end - 1
                # In the padded form a prompt is there twice; only the first is read for its targets.
                placed.setdefault((segment.side, segment.pair), (segment, start, prompt_end))
                start = end
        if self.form == "padded":
            grid["attention_mask"] = (grid.pop("pair_ids") != NO_PAIR).long()
            del grid["side_ids"]
        grid = {name: values.view(len(rows), width) for name, values in grid.items()}
        sides = (CHOSEN, REJECTED, PROMPT) if self.with_prompts else (CHOSEN, REJECTED)
        return {**grid, **_targets([placed[side, pair] for side in sides for pair in range(num_pairs)], num_pairs)}


class _Segment(NamedTuple):
    """Tokens that stand together: a prompt or a completion."""

    pair: int
    side: int
    token_ids: list[int]
    position: int
    """Of its first token in the sequence that it belongs to."""


def _targets(sequences: Sequence[tuple[_Segment, int, int]], num_pairs: int) -> dict[str, Tensor]:
    """Which hidden state predicts which token of which sequence."""
    hidden_index: list[int] = []
    target_ids: list[int] = []
    token_counts: list[int] = []
    for segment, start, before in sequences:
        ids, states = segment.token_ids, [before, *range(start, start + len(segment.token_ids) - 1)]
        if segment.side == PROMPT:  # nothing stands before its first token, so nothing predicts it
            ids, states = ids[1:], states[1:]
        hidden_index += states
        target_ids += ids
        token_counts.append(len(ids))
    counts = torch.tensor(token_counts)
    return {
        "hidden_index": torch.tensor(hidden_index),
        "target_ids": torch.tensor(target_ids),
        "sequence_index": torch.repeat_interleave(torch.arange(len(counts)), counts),
        "token_counts": counts,
        "last_index": torch.tensor([start + len(segment.token_ids) - 1 for segment, start, _ in sequences[: 2 * num_pairs]]),
    }
