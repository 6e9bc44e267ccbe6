"""What a training stage keeps in memory, by its configuration; `pipeline/estimate` turns it into bytes. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    """A forward and backward pass of a training."""

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
    is_split: bool = False
    """Whether attention is computed for one sequence after the other, whose results are kept beside the row made of them."""
    copied_share: float = 0.0
    """Of the tokens, those whose queries, keys and values are copied too: a prompt and the rejected side that continues it."""
    has_moments: bool = True
    """Whether the optimizer has stepped before: its moments come with the first step."""


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
    samples_ahead: bool = False
    """Whether it samples while models learn, and so never sleeps."""


@dataclass(frozen=True)
class Teacher:
    """A model whose logits are computed beside those of the model that learns; it stays in memory."""

    model: str
    """As in the recipe."""
    beta: float
    """Of the divergence from it; see `align.losses.distill`."""


@dataclass(frozen=True)
class TrainingNeeds:
    """The models, rows and passes of a training stage. Models and rows are named as in the recipe."""

    model: str
    rows: str
    precision: str
    peft: Lora | VirtualTokens | None
    passes: Callable[[Setting], Sequence[Batch]]
    """Those that may need the most memory: a smaller pass may come when more is there besides."""
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
    teacher: Teacher | None = None
    scorers: tuple[str, ...] = ()
    """Reward models that stay in memory."""
    is_labelled: bool = False
    """Whether each completion of a row is read by itself, beside one of another row."""
    sampler: Sampler | None = None

    @property
    def models(self) -> set[str]:
        """All models that are named."""
        teacher = None if self.teacher is None else self.teacher.model
        return {name for name in (self.model, self.reference, self.value_model, teacher, *self.scorers) if name is not None}


@runtime_checkable
class Trains(Protocol):
    """The configuration of a stage that trains."""

    def training_needs(self) -> TrainingNeeds: ...


def sample_passes(config: Optimization, setting: Setting, *, max_tokens: int, packing: bool) -> Sequence[Batch]:
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
    masked, split = is_shared and setting.masks(row_tokens), is_shared and setting.splits(row_tokens)
    return [Batch(micro * row_tokens, row_tokens, targets, masked, config.batch_size > config.rows_per_pass, split)]


def pair_passes(config: PairwiseOptimization, setting: Setting) -> Sequence[Batch]:
    """The passes over the longest pairs: batches hold pairs of similar length, sorted from the longest on.

    Where all pairs are known, so is what else is in memory. The longest pass of an optimizer batch comes first, so it meets no
    gradients; and if there are one or two batches and one epoch, the batch of the longest pairs comes before the first step.
    """
    limit = min(config.max_tokens, setting.context)
    size, micro = config.batch_size, config.rows_per_pass
    # Pairs that do not exist yet may be all completion.
    fitting = [row for row in setting.lengths or () if row.longer_side <= limit] or [RowLength(0, (limit, limit))]
    ordered = sorted(fitting, key=lambda row: -row.total)
    if not 0 < len(setting.lengths or ()) < SAMPLED_ROWS:
        return [_pair_batch(setting, ordered[:micro], micro, accumulates=size > micro)]
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    first_is_longest = len(batches) <= 2 and config.num_epochs == 1
    return [
        _pair_batch(setting, rows, len(rows), accumulates=start > 0, has_moments=number > 0 or not first_is_longest)
        for number, batch in enumerate(batches[:2])
        for start in range(0, len(batch), micro)
        if (rows := batch[start : start + micro])
    ]


def _pair_batch(setting: Setting, rows: Sequence[RowLength], count: int, *, accumulates: bool, has_moments: bool = True) -> Batch:
    """A pass over `count` pairs that are like `rows`, the longest first.

    A prompt counts once, unless virtual tokens stand in front of both sides.
    """
    longest, total = rows[0], sum(row.total for row in rows)
    targets = count * sum(sum(row.completions) for row in rows) // len(rows)
    if setting.virtual_tokens:
        row_tokens = setting.virtual_tokens + max(row.longer_side for row in rows)
        return Batch(2 * count * row_tokens, row_tokens, targets, setting.masks(row_tokens), accumulates, has_moments=has_moments)
    row_tokens = max(PAIR_ROW_TOKENS[setting.device], longest.total)
    is_masked = setting.masks(row_tokens)
    if is_masked:
        pairs_per_row = max(1, row_tokens // max(rows[-1].total, 1))
        tokens = math.ceil(count / pairs_per_row) * row_tokens
    else:  # without a mask of pairs of tokens, padding is left out
        tokens = total if count == len(rows) else count * longest.total
    copied = sum(row.prompt + row.completions[-1] for row in rows) / total if setting.splits(row_tokens) else 0.0
    return Batch(tokens, row_tokens, targets, is_masked, accumulates, copied > 0, copied, has_moments)


def pair_needs(
    config: PairwiseOptimization, model: str, pairs: str, peft: Lora | VirtualTokens | None, *, has_score_head: bool = False
) -> TrainingNeeds:
    """What a method needs that trains `model` on `pairs`, without a reference."""
    passes, saved = partial(pair_passes, config), config.save_dtype
    return TrainingNeeds(model, pairs, config.precision, peft, passes, config, has_score_head, save_dtype=saved)


def labelled_needs(config: PairwiseOptimization, model: str, rows: str, peft: Lora | VirtualTokens | None) -> TrainingNeeds:
    """As `pair_needs`, of a method that puts beside each completion one of another prompt."""

    def passes(setting: Setting) -> Sequence[Batch]:
        lengths = setting.lengths
        if lengths is not None:
            single = [RowLength(row.prompt, (one,)) for row in lengths for one in row.completions]
            others = [*single[1:], *single[:1]]
            lengths = [
                RowLength(row.prompt, (*row.completions, *other.completions)) for row, other in zip(single, others, strict=True)
            ]
        return pair_passes(config, replace(setting, lengths=lengths))

    return replace(pair_needs(config, model, rows, peft), passes=passes, is_labelled=True)


def episode_passes(config: OnlineTraining, setting: Setting) -> Sequence[Batch]:
    """As many rows of episodes as `micro_batch_tokens` lets into a pass; completions as long as they may become."""
    longest = max((row.prompt for row in setting.lengths or ()), default=config.max_prompt_tokens)
    episode = min(min(longest, config.max_prompt_tokens) + config.max_completion_tokens, setting.context)
    row_tokens = max(min(EPISODE_ROW_TOKENS[setting.device], config.micro_batch_tokens), episode)
    episodes_per_row = max(1, row_tokens // episode)
    rows = math.ceil(config.mini_batch_size / episodes_per_row)
    in_a_pass = min(rows, max(1, config.micro_batch_tokens // row_tokens))
    width = min(episodes_per_row, config.mini_batch_size) * episode
    targets = min(in_a_pass * episodes_per_row, config.mini_batch_size) * config.max_completion_tokens
    return [Batch(in_a_pass * width, width, targets, setting.masks(width), rows > in_a_pass, setting.splits(width))]
