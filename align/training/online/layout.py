"""Completions of different lengths in one forward pass, without padding between them; results are flat, one number per token.

Sequences are laid end to end in rows (first-fit decreasing). Positions restart with every sequence, which keeps them
apart. Results are flat, [completion tokens], in the order of the episodes, so they do not depend on how rows were filled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.training.packing import pack_rows


@dataclass(frozen=True)
class Episode:
    """One prompt and its completion, in tokens; the completion has the end-of-sequence token where it ended by itself."""

    prompt_token_ids: list[int]
    completion_token_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_token_ids) + len(self.completion_token_ids)


@dataclass(frozen=True)
class PackedEpisodes:
    """Some episodes, ready for a forward pass.

    `input_ids` and `position_ids` are [rows, seq]. `sources` are places in the flattened rows: of the state from which each
    completion token was drawn; `targets` are those tokens; `tokens` are their places among all completion tokens of the
    rollout batch. The three are [completion tokens], one completion after the other; `offsets` says where each begins, and has
    one more number, their count, at the end.
    """

    input_ids: Tensor
    position_ids: Tensor
    sources: Tensor
    targets: Tensor
    tokens: Tensor
    offsets: list[int]

    def lengths(self, device: torch.device) -> Tensor:
        """[completion tokens] number of tokens in the completion of each."""
        counts = torch.tensor(self.offsets, device=device).diff()
        return counts.repeat_interleave(counts)

    def to(self, device: torch.device) -> PackedEpisodes:
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "offsets"}
        return PackedEpisodes(**moved, offsets=self.offsets)


def completion_offsets(episodes: Sequence[Episode]) -> list[int]:
    """Where each episode's completion begins among all completion tokens; one more number, their count, at the end."""
    offsets = [0]
    for episode in episodes:
        offsets.append(offsets[-1] + len(episode.completion_token_ids))
    return offsets


def pack_episodes(
    episodes: Sequence[Episode],
    chosen: Sequence[int],
    *,
    micro_batch_tokens: int,
    row_tokens: int,
    pad_token_id: int,
    longest_shared_row: int | None = None,
) -> Iterator[PackedEpisodes]:
    """The chosen episodes in forward passes of about `micro_batch_tokens` tokens; every one is in exactly one.

    A single sequence that is longer gets a pass of its own.

    Args:
        longest_shared_row: see `align.models.attention`.
    """
    offsets = completion_offsets(episodes)
    lengths = [len(episodes[index]) for index in chosen]
    capacity = max(min(row_tokens, micro_batch_tokens), *lengths)
    rows = pack_rows(lengths, capacity, longest_shared_row)
    rows_per_pass = max(1, micro_batch_tokens // capacity)
    for start in range(0, len(rows), rows_per_pass):
        numbers = [[chosen[place] for place in row] for row in rows[start : start + rows_per_pass]]
        yield _packed(episodes, numbers, offsets, pad_token_id)


def _packed(
    episodes: Sequence[Episode], rows: Sequence[Sequence[int]], offsets: Sequence[int], pad_token_id: int
) -> PackedEpisodes:
    width = max(sum(len(episodes[number]) for number in row) for row in rows)
    input_ids: list[list[int]] = []
    position_ids: list[list[int]] = []
    sources: list[int] = []
    targets: list[int] = []
    tokens: list[int] = []
    for row_number, row in enumerate(rows):
        ids: list[int] = []
        positions: list[int] = []
        for number in row:
            episode = episodes[number]
            # A token is predicted by the state before it: the completion's first by the prompt's last.
            first_source = row_number * width + len(ids) + len(episode.prompt_token_ids) - 1
            sources += range(first_source, first_source + len(episode.completion_token_ids))
            targets += episode.completion_token_ids
            tokens += range(offsets[number], offsets[number + 1])
            ids += episode.prompt_token_ids + episode.completion_token_ids
            positions += range(len(episode))
        padding = width - len(ids)
        input_ids.append(ids + [pad_token_id] * padding)
        # Position 0 each: every padding token is a sequence of its own that no real token sees.
        position_ids.append(positions + [0] * padding)
    return PackedEpisodes(
        torch.tensor(input_ids),
        torch.tensor(position_ids),
        torch.tensor(sources),
        torch.tensor(targets),
        torch.tensor(tokens),
        completion_offsets([episodes[number] for row in rows for number in row]),
    )


def to_rows(flat: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[episodes, longest completion] of flat numbers, 0 beyond each completion's end, and the completion_mask (bool)."""
    lengths = torch.tensor([after - before for before, after in itertools.pairwise(offsets)], device=flat.device)
    mask = torch.arange(int(lengths.max()), device=flat.device)[None] < lengths[:, None]
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat), mask
