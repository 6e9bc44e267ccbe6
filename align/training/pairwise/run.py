"""The path that every pairwise method takes: read the pairs, load the model, add the reference, train, save."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from align.data.template import ChatFormat
from align.errors import StageError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder, refuse_encoder_decoder
from align.models.load import check_vocabulary
from align.models.trainable import Task, TrainableModel, count_trained, load_trainable, save_trained
from align.runtime.device import frozen_dtype
from align.runtime.seed import derive_seed
from align.stage import StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, Artifact, write_rows
from align.training.epoch import train_and_save
from align.training.loop import resolve_precision, training_arguments
from align.training.pairwise.mask_probe import choose_collator
from align.training.pairwise.objective import BatchCounts, PairwiseConfig
from align.training.pairwise.reference import reference_of_another_model, reference_of_the_policy
from align.training.pairwise.rows import PairRows
from align.training.pairwise.trainer import PairwiseTrainer, prepare_model
from align.training.pairwise.training_pairs import TrainingPairs, pair_lengths
from align.training.weights_of_first import weights_of_first

CHECKED_PAIRS = 16
HELD_OUT = "held_out/"
"""In front of the name of a metric over held-out pairs."""
# How far the loss at step 0 may be from that of equal models, as a share of it where it is above 1: rounding of the two forward
# passes, which are batched differently.
STEP_ZERO_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}


@dataclass(frozen=True)
class PairData:
    """The pairs of a stage as its model reads them."""

    artifact: Artifact
    rows: PairRows
    chat_format: ChatFormat
    policy: TrainableModel
    """The model that is trained."""
    reference: Artifact | None
    """The model that the policy stays near, for methods that have one."""


def run_pairwise(context: StageContext[PairwiseConfig]) -> StageOutcome:
    """A whole stage: train on all pairs by the method that the configuration is; its `training_needs` name models and pairs.

    Raises:
        DataError: if a pair cannot be used and on_invalid is error. RecipeError: if a model cannot be used.
        StageError: if training diverges, or the loss at step 0 is not that of equal models although policy and reference are.
        Interrupted: if a stop was requested.
    """
    data = read_pairs(context)
    held_out = data.rows.held_out(share=context.config.held_out_share, seed=context.seed)
    if len(held_out) == len(data.rows.pairs):  # too few prompts for a share of them: all are trained on
        held_out = held_out[:0]
    places = np.concatenate([data.rows.others(held_out), held_out])
    count = len(places) - len(held_out)
    metrics = train_pairs(context, data, data.rows.pairs.take(places), count)
    return outcome_of(context, data, {**metrics, "pairs_train": count, "pairs_held_out": len(held_out)})


def read_pairs(context: StageContext[PairwiseConfig]) -> PairData:
    """Tokens of the pairs, none longer than the policy (and the reference) can see."""
    config, needs = context.config, context.config.training_needs()
    source, pairs = context.artifact(needs.model), context.artifact(needs.rows)
    reference = None if needs.reference is None else context.artifact(needs.reference)
    folder = ModelFolder.of(source)
    refuse_encoder_decoder(config.method, source, folder)
    if reference is not None:
        reference_folder = ModelFolder.of(reference)
        refuse_encoder_decoder(config.method, reference, reference_folder)
    chat_format = load_format(folder, where=source.where(None))
    policy = TrainableModel(folder, config.peft, context.store_root, context.name, config.save_dtype)
    limit = min(config.max_tokens, policy.context_tokens)
    if reference is not None:
        check_vocabulary(source, folder, reference, reference_folder)
        limit = min(limit, reference_folder.context_tokens)
    rows = config.reads(context, pairs, folder, chat_format, max_tokens=limit)
    if rows.note:
        context.note(rows.note)
    return PairData(pairs, rows, chat_format, policy, reference)


def train_pairs(context: StageContext[PairwiseConfig], data: PairData, rows: TrainingPairs, count: int) -> dict[str, Any]:
    """Train on the first `count` pairs, save the model and its curve into the stage's output, and return metrics.

    A reward model gets a new head of a single score in place of the language model's. The trained model is measured on the
    other pairs; references are computed for both in one go.
    """
    tokens = sum(pair_lengths(rows[:count]))
    config, policy, pad_token_id, reference = context.config, data.policy, data.chat_format.pad_token_id, data.reference
    new_score_head = config.training_needs().has_score_head
    precision = resolve_precision(config.precision)
    is_own_reference = reference is not None and reference.fingerprint == context.artifact(config.model).fingerprint
    if reference is not None and not is_own_reference:
        # Before the policy is loaded, so that one model is in memory at a time.
        rows = reference_of_another_model(context, reference, rows, pad_token_id=pad_token_id, precision=precision)
    # A new adapter or score head is drawn from the global generator.
    torch.manual_seed(derive_seed(context.seed, "parameters"))
    task: Task = "SEQ_CLS" if new_score_head else "CAUSAL_LM"
    frozen = frozen_dtype(precision)
    with weights_of_first(context.spread, all_read=policy.changes_initial_policy):
        model = load_trainable(policy, task=task, new_head=new_score_head, pad_token_id=pad_token_id, frozen_dtype=frozen)
    count_of_trained = count_trained(model)
    model = prepare_model(model, tail_weight=config.tail_weight, spread=context.spread)
    collator = choose_collator(model, rows[:count], context, pad_token_id=pad_token_id, with_prompts=config.counts_prompts)
    if reference is not None and is_own_reference:
        rows = reference_of_the_policy(context, reference, rows, model, collator, policy, precision=precision)
    rows, held_out = rows[:count], rows[count:]
    trainer = PairwiseTrainer(model, rows, config, collator, training_arguments(config, context, num_rows=count))
    metrics: dict[str, Any] = {}
    if reference is not None:
        metrics["loss_at_step_0"] = first_loss = trainer.measure(rows[:CHECKED_PAIRS])["loss"]
        if is_own_reference and not policy.changes_initial_policy and config.knows_loss_of_equal_models:
            _check_step_zero(first_loss, config, precision)
    save = lambda folder: save_trained(trainer.model, data.chat_format, folder, policy)  # noqa: E731
    history = train_and_save(trainer, save, context, config, context.output / MODEL_FOLDER, per_epoch={"pairs": count})
    if context.is_first:
        history.write(context.output / METRICS_NAME)
    measured = trainer.measure(held_out) if held_out else {}
    of_epoch = partial(history.of_last_epoch, rows=count, batch_size=config.batch_size)
    return {
        **metrics,
        **{name: of_epoch(name) for name in config.final_metrics},
        **{f"{HELD_OUT}{name}": measured[name] for name in config.final_metrics if name in measured},
        "steps": history.steps,
        "tokens": tokens,
        "trained_tokens": tokens * config.num_epochs,
        "trained_parameters": count_of_trained,
        "precision": precision,
        "micro_batch_size": trainer.pass_size.size,
        "gradient_checkpointing": trainer.pass_size.recomputes,
        "batch_form": collator.form,
    }


def _check_step_zero(loss: float, config: PairwiseConfig, precision: str) -> None:
    expected = loss_of_equal_models(config)
    if not abs(loss - expected) <= STEP_ZERO_TOLERANCE[precision] * max(1.0, expected):
        raise StageError(
            f"The {config.method.upper()} loss before the first step is {loss:.6f}, not {expected:.6f}: policy and reference "
            "differ",
            hint="This is a fault of the model's files or of align, not of your recipe; please report it with the log.",
        )


def loss_of_equal_models(config: PairwiseConfig) -> float:
    """The loss of any pair while policy and reference are the same; see `ReferenceConfig`."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    batch = {"reference_chosen_logps": zero, "reference_rejected_logps": zero, "token_counts": torch.cat([one, one])}
    batch["desirable"] = one
    return float(config.pair_losses(torch.cat([zero, zero]), batch, BatchCounts(one[0], one[0])).losses)


def outcome_of(context: StageContext[PairwiseConfig], data: PairData, metrics: dict[str, Any]) -> StageOutcome:
    """Record the dropped pairs, and count them."""
    if context.is_first:
        write_rows(context.output / DROPS_NAME, data.rows.drops)
    total = data.rows.tokens.num_records
    return StageOutcome(metrics=metrics, rows_in=total, rows_out=len(data.rows.pairs), dropped=data.rows.dropped())
