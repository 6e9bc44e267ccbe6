"""DPO with a reference that is computed once."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.config.sections import Optimization
from align.data.encoding import EncodedPreference
from align.data.template import ChatFormat
from align.errors import StageError
from align.models.load import load_causal_lm
from align.models.start import Start, load_start
from align.models.virtual_tokens import without_virtual_tokens
from align.runtime.context import RunContext
from align.store.artifact import Artifact
from align.store.fingerprint import HASHES_NAME, FileHashes
from align.training.loop import TrainingHistory, resolve_precision
from align.training.pairwise.fit import pairwise_trainer, prepare_model, train_and_save
from align.training.pairwise.form import choose_collator
from align.training.pairwise.layout import PairCollator, TrainingPair
from align.training.pairwise.objective import DpoObjective
from align.training.pairwise.reference import (
    ReferenceLogps,
    cached_reference_logps,
    compute_reference_logps,
    reference_key,
)

CHECKED_PAIRS = 16
# How far the loss at step 0 may be from that of equal models, as a share of it where it is above 1: rounding of the two forward
# passes, which are batched differently.
STEP_ZERO_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


@dataclass(frozen=True)
class Reference:
    """The model that DPO stays near, and the store that keeps what it says."""

    artifact: Artifact
    is_policy: bool
    """Whether training starts from this very model."""
    store_root: Path


def train_dpo(
    pairs: Sequence[EncodedPreference],
    context: RunContext,
    config: Optimization,
    *,
    start: Start,
    reference: Reference,
    output: Path,
    chat_format: ChatFormat,
    objective: DpoObjective,
) -> tuple[TrainingHistory, dict[str, Any]]:
    """Train what `start` says against the reference, and save it to `output`.

    Raises:
        StageError: if the loss at step 0 is not that of equal models although policy and reference are the same, or training
            diverges.
        Interrupted: if a stop was requested.
    """
    precision = resolve_precision(config.precision)
    pad_token_id = chat_format.pad_token_id
    kept = None if reference.is_policy else _logps_of_another(reference, pairs, context, pad_token_id, precision)
    gc.collect()  # a model refers to itself; the reference's weights would stay until the collector happens to run
    torch.manual_seed(context.seed)  # a new adapter is drawn from it
    model = prepare_model(load_start(start))
    collator = choose_collator(model, [TrainingPair(row) for row in pairs], context, pad_token_id=pad_token_id)
    # Of the policy before its first step: a new LoRA is nothing yet, and what is trained further is its own reference, so that
    # no second copy is ever in memory. Only virtual tokens are something from the start.
    with without_virtual_tokens(model) if start.moves_the_model else contextlib.nullcontext():
        logps = kept or _logps(reference, pairs, context, lambda: (model, collator), precision, quantized=start.is_quantized)
    rows = [TrainingPair(row, _numbers(logps[row.id])) for row in pairs]
    trainer = pairwise_trainer(model, rows, context, config, objective, collator)
    first_loss = trainer.loss_of(rows[:CHECKED_PAIRS])
    if reference.is_policy and not start.moves_the_model:
        _check_step_zero(first_loss, objective.loss_without_margin(), precision)
    history, metrics = train_and_save(trainer, context, config, chat_format, output, start, shown=SHOWN)
    return history, {"loss_at_step_0": first_loss, **metrics}


def _numbers(reference: ReferenceLogps) -> dict[str, float]:
    return {"reference_chosen_logps": reference.chosen_logps, "reference_rejected_logps": reference.rejected_logps}


def _logps_of_another(
    reference: Reference, pairs: Sequence[EncodedPreference], context: RunContext, pad_token_id: int, precision: str
) -> Mapping[str, ReferenceLogps]:
    """Of a model that is not the policy. It is gone again before the policy comes, so that one model is in memory."""

    def load() -> tuple[Any, PairCollator]:
        model = prepare_model(load_causal_lm(reference.artifact.model_path, dtype="float32"))
        return model, choose_collator(model, [TrainingPair(row) for row in pairs], context, pad_token_id=pad_token_id)

    return _logps(reference, pairs, context, load, precision)


def _logps(
    reference: Reference,
    pairs: Sequence[EncodedPreference],
    context: RunContext,
    load: Callable[[], tuple[Any, PairCollator]],
    precision: str,
    *,
    quantized: bool = False,
) -> Mapping[str, ReferenceLogps]:
    """From the store, or computed with the model and the form of batches that `load` gives."""
    hashes = FileHashes(reference.store_root / HASHES_NAME)  # what the plan has read need not be read again
    key = reference_key(reference.artifact, pairs, hashes, precision=precision, quantized=quantized)

    def compute() -> list[ReferenceLogps]:
        model, collator = load()
        return compute_reference_logps(model, pairs, collator, context, precision=precision)

    return cached_reference_logps(reference.store_root, key, pairs, context, compute)


def _check_step_zero(loss: float, expected: float, precision: str) -> None:
    if not abs(loss - expected) <= STEP_ZERO_TOLERANCE[precision] * max(1.0, expected):
        raise StageError(
            f"The DPO loss before the first step is {loss:.6f}, not {expected:.6f}: policy and reference differ",
            hint="This is a fault of the model's files or of align, not of your recipe; please report it with the log.",
        )
