"""The largest forward pass of each kind of training, from its configuration and the lengths of its rows.

Sizes of rows and passes that the trainers fix are repeated here, since their modules import torch; a test holds them equal.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from align.config.peft import Lora, VirtualTokens
from align.config.ppo import Ppo
from align.config.sections import PairwiseOptimization
from align.pipeline.estimate.lengths import RowLength
from align.pipeline.estimate.memory import Batch, Device
from align.stages import sft

PAIR_ROW_TOKENS: dict[Device, int] = {"cpu": 128, "cuda": 1024}
"""`align.training.pairwise.mask_probe.ROW_TOKENS`."""
EPISODE_ROW_TOKENS: dict[Device, int] = {"cpu": 192, "cuda": 1024}
"""`align.training.online.layout.ROW_TOKENS`."""


def sft_batch(
    config: sft.Config, peft: Lora | VirtualTokens | None, lengths: Sequence[RowLength] | None, *, context: int
) -> Batch:
    """Full rows where samples are packed, else rows as long as the longest sample."""
    limit = min(config.max_tokens, context)
    micro = config.micro_batch_size or config.batch_size
    virtual = _virtual_tokens(peft)
    is_packed = config.packing and not virtual
    longest = max((row.total for row in lengths or ()), default=limit)
    row = min(limit, limit if is_packed else longest)
    share = sum(sum(row.completions) for row in lengths) / sum(row.total for row in lengths) if lengths else 1.0
    # Without packing, the padding of shorter rows counts as samples of their own, which asks for a mask.
    masked = is_packed or micro > 1
    return Batch(micro * (row + virtual), row + virtual, math.ceil(micro * row * share), masked, config.batch_size > micro)


def pair_batch(
    config: PairwiseOptimization,
    peft: Lora | VirtualTokens | None,
    lengths: Sequence[RowLength] | None,
    *,
    context: int,
    device: Device,
    has_logits: bool,
) -> Batch:
    """The longest pairs together, since batches hold pairs of similar length; the prompt once, unless virtual tokens stand in
    front of both sides."""
    limit = min(config.max_tokens, context)
    micro = config.micro_batch_size or config.batch_size
    # Pairs that are not there yet may be all completion.
    fitting = [row for row in lengths or () if row.longer_side <= limit] or [RowLength(0, (limit, limit))]
    longest = heapq.nlargest(micro, fitting, key=lambda row: row.total)
    targets = micro * sum(sum(row.completions) for row in longest) // len(longest)
    if virtual := _virtual_tokens(peft):
        row_tokens = virtual + max(row.longer_side for row in longest)
        tokens = 2 * micro * row_tokens
    else:
        row_tokens = max(PAIR_ROW_TOKENS[device], longest[0].total)
        pairs_per_row = max(1, row_tokens // max(longest[-1].total, 1))
        tokens = math.ceil(micro / pairs_per_row) * row_tokens
    return Batch(tokens, row_tokens, targets if has_logits else 0, True, config.batch_size > micro)


def episode_batch(config: Ppo, lengths: Sequence[RowLength] | None, *, context: int, device: Device) -> Batch:
    """As many rows of episodes as `micro_batch_tokens` lets into a pass; completions as long as they may become."""
    longest = max((row.prompt for row in lengths or ()), default=config.max_prompt_tokens)
    episode = min(min(longest, config.max_prompt_tokens) + config.max_completion_tokens, context)
    row_tokens = max(min(EPISODE_ROW_TOKENS[device], config.micro_batch_tokens), episode)
    episodes_per_row = max(1, row_tokens // episode)
    rows = math.ceil(config.mini_batch_size / episodes_per_row)
    in_a_pass = min(rows, max(1, config.micro_batch_tokens // row_tokens))
    width = min(episodes_per_row, config.mini_batch_size) * episode
    targets = min(in_a_pass * episodes_per_row, config.mini_batch_size) * config.max_completion_tokens
    return Batch(in_a_pass * width, width, targets, True, rows > in_a_pass)


def _virtual_tokens(peft: Lora | VirtualTokens | None) -> int:
    return peft.num_virtual_tokens if isinstance(peft, VirtualTokens) else 0
