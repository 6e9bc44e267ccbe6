"""What a training stage keeps in memory, by its configuration; `pipeline/estimate` turns it into bytes. Loads no torch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

from align.config.online import OnlineTraining
from align.config.peft import Lora, VirtualTokens
from align.config.sections import EngineChoice, Optimization, PairwiseOptimization, SaveDtype, TrainingMemory
from align.models.sizes import DENSE_MASK_TOKENS, EPISODE_ROW_TOKENS, PAIR_ROW_TOKENS
from align.runtime.device import Device

Precision = Literal["float32", "bfloat16"]
SAMPLED_ROWS = 256
"""Rows whose lengths are known, at most: reading more would take longer than the rest of a plan."""
Split = Literal["no", "sequences", "sides"]


def training_precision(name: str, *, gpu_has_bfloat16: bool) -> Precision:
    """The arithmetic that a recipe's `precision` means: auto is bfloat16 on a GPU that computes it natively, else float32.

    Some CPUs compute bfloat16 natively too. `auto` ignores that: the same recipe must give the same numbers on every CPU.
    """
    return "bfloat16" if name == "bfloat16" or (name == "auto" and gpu_has_bfloat16) else "float32"


@dataclass(frozen=True)
class RowLength:
    """Tokens of a row."""

    prompt: int
    completions: tuple[int, ...]
    """One of an instruction, chosen and rejected of a pair, none of a prompt."""

    @property
    def total(self) -> int:
        """With the prompt once."""
        return self.prompt + sum(self.completions)

    @property
    def longer_side(self) -> int:
        return self.prompt + max(self.completions, default=0)


@dataclass(frozen=True)
class Setting:
    """What decides the size of a forward pass besides the stage's configuration."""

    lengths: Sequence[RowLength] | None
    """Of the first `SAMPLED_ROWS` rows that exist; None where none is known yet, and the stage's limits count instead."""
    context: int
    """Tokens that the model can see."""
    virtual_tokens: int
    """In front of every row."""
    device: Device
    has_flash: bool = False
    """Whether FlashAttention computes rows that hold several sequences; see `align.models.attention`."""

    def masks(self, row_tokens: int) -> bool:
        """Whether rows that hold several sequences, or padding, get a mask of pairs of tokens."""
        return self.virtual_tokens > 0 or (not self.has_flash and row_tokens <= DENSE_MASK_TOKENS[self.device])

    def splits(self, row_tokens: int) -> bool:
        """Whether attention of such rows is computed sequence by sequence."""
        return not self.has_flash and not self.masks(row_tokens)


@dataclass(frozen=True)
class Batch:
    """The largest forward pass of a training."""

    tokens: int
    """In the whole pass, padding included."""
    row_tokens: int
    """In the longest row; a mask has the square of it."""
    targets: int
    """Tokens whose log-probability is computed, where the model has a language model's head."""
    is_masked: bool
    """Whether attention gets a mask of pairs of tokens, as short rows that hold several sequences do."""
    accumulates: bool
    """Whether gradients of an earlier pass are in memory during a pass."""
    split: Split = "no"
    """How attention is computed: for a whole row, for one sequence after the other, whose results are kept beside the row that
    is made of them, or for the sides of pairs, each of which gets the prompt's queries, keys and values too."""


@dataclass(frozen=True)
class Sampler:
    """A sampling engine that stays in memory while training runs."""

    choice: EngineChoice
    memory_share: float
    """Of a GPU's memory, that vLLM may take."""
    tokens: int
    """Of a prompt and completion together, at most."""
    rows: int
    """Completions sampled with one state of the policy."""


@dataclass(frozen=True)
class TrainingNeeds:
    """The models, rows and passes of a training stage. Models and rows are named as in the recipe."""

    model: str
    rows: str
    precision: str
    peft: Lora | VirtualTokens | None
    batch: Callable[[Setting], Batch]
    """The largest forward pass."""
    memory: TrainingMemory
    """Optimizer and gradient checkpointing."""
    has_score_head: bool = False
    """True for a reward model; it scores held-out pairs at the end, loaded from its folder when the trained model is gone."""
    reference: str | None = None
    """Model that goes through the pairs without gradients, before training."""
    save_dtype: SaveDtype = "auto"
    """Of the weights in the result, as in the recipe."""
    num_epochs_kept: int = 0
    """Number of epochs whose models are kept."""
    value_model: str | None = None
    """Model that the value model starts from; it is trained together with the policy."""
    frozen_copies: int = 0
    """Copies of the model that stay in memory; an adapter needs none, since it is switched off instead."""
    scorers: tuple[str, ...] = ()
    """Reward models that stay in memory."""
    sampler: Sampler | None = None

    @property
    def models(self) -> set[str]:
        """All models that are named."""
        return {name for name in (self.model, self.reference, self.value_model, *self.scorers) if name is not None}


@runtime_checkable
class Trains(Protocol):
    """The configuration of a stage that trains."""

    def training_needs(self) -> TrainingNeeds: ...


def sample_batch(config: Optimization, setting: Setting, *, max_tokens: int, packing: bool) -> Batch:
    """Full rows where samples are packed, else rows as long as the longest sample."""
    limit = min(max_tokens, setting.context)
    micro, lengths = config.rows_per_pass, setting.lengths
    is_packed = packing and not setting.virtual_tokens
    if is_packed and lengths and len(lengths) < SAMPLED_ROWS:
        # All rows are known. Any two packed rows hold more than one row's tokens together, or they would be one.
        micro = min(micro, len(lengths), math.ceil(2 * sum(row.total for row in lengths) / limit))
    row = limit if is_packed else min(limit, max((row.total for row in lengths or ()), default=limit))
    # Only completions have targets; rows that are not known may be all completion.
    share = sum(sum(row.completions) for row in lengths) / sum(row.total for row in lengths) if lengths else 1.0
    # Without packing, the padding of shorter rows counts as a sample of its own.
    row_tokens = row + setting.virtual_tokens
    is_shared, targets = is_packed or micro > 1, math.ceil(micro * row * share)
    masked = is_shared and setting.masks(row_tokens)
    split: Split = "sequences" if is_shared and setting.splits(row_tokens) else "no"
    return Batch(micro * row_tokens, row_tokens, targets, masked, config.batch_size > config.rows_per_pass, split)


def pair_batch(config: PairwiseOptimization, setting: Setting) -> Batch:
    """The longest pairs together, since batches hold pairs of similar length.

    A prompt counts once, unless virtual tokens stand in front of both sides.
    """
    limit = min(config.max_tokens, setting.context)
    micro = config.rows_per_pass
    # Pairs that do not exist yet may be all completion.
    fitting = [row for row in setting.lengths or () if row.longer_side <= limit] or [RowLength(0, (limit, limit))]
    longest = heapq.nlargest(micro, fitting, key=lambda row: row.total)
    targets = micro * sum(sum(row.completions) for row in longest) // len(longest)
    if setting.virtual_tokens:
        row_tokens = setting.virtual_tokens + max(row.longer_side for row in longest)
        tokens = 2 * micro * row_tokens
    else:
        row_tokens = max(PAIR_ROW_TOKENS[setting.device], longest[0].total)
        pairs_per_row = max(1, row_tokens // max(longest[-1].total, 1))
        tokens = math.ceil(micro / pairs_per_row) * row_tokens
    split: Split = "sides" if setting.splits(row_tokens) else "no"
    return Batch(tokens, row_tokens, targets, setting.masks(row_tokens), config.batch_size > micro, split)


def pair_needs(
    config: PairwiseOptimization, model: str, pairs: str, peft: Lora | VirtualTokens | None, *, has_score_head: bool = False
) -> TrainingNeeds:
    """What a method needs that trains `model` on `pairs`, without a reference."""
    batch, saved = partial(pair_batch, config), config.save_dtype
    return TrainingNeeds(model, pairs, config.precision, peft, batch, config, has_score_head, save_dtype=saved)


def episode_batch(config: OnlineTraining, setting: Setting) -> Batch:
    """As many rows of episodes as `micro_batch_tokens` lets into a pass; completions as long as they may become."""
    longest = max((row.prompt for row in setting.lengths or ()), default=config.max_prompt_tokens)
    episode = min(min(longest, config.max_prompt_tokens) + config.max_completion_tokens, setting.context)
    row_tokens = max(min(EPISODE_ROW_TOKENS[setting.device], config.micro_batch_tokens), episode)
    episodes_per_row = max(1, row_tokens // episode)
    rows = math.ceil(config.mini_batch_size / episodes_per_row)
    in_a_pass = min(rows, max(1, config.micro_batch_tokens // row_tokens))
    width = min(episodes_per_row, config.mini_batch_size) * episode
    targets = min(in_a_pass * episodes_per_row, config.mini_batch_size) * config.max_completion_tokens
    split: Split = "sequences" if setting.splits(width) else "no"
    return Batch(in_a_pass * width, width, targets, setting.masks(width), rows > in_a_pass, split)
