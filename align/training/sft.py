"""Supervised fine-tuning on packed rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.config.sections import FineTuning
from align.data.encoding import EncodedInstruction
from align.data.template import ChatFormat
from align.models.attention import longest_shared_row
from align.models.dropout import set_dropout
from align.models.later_weights import has_weights
from align.models.trainable import TrainableModel, count_trained, load_trainable, save_trained
from align.runtime.context import RunContext
from align.runtime.device import frozen_dtype
from align.runtime.group import from_first
from align.runtime.seed import derive_seed
from align.training.epoch import train_and_save
from align.training.label_guard import check_label_spans
from align.training.loop import TrainingHistory, resolve_precision, training_arguments
from align.training.packing import PackedCollator, PackedRows, pack_rows
from align.training.sharding import shard
from align.training.weights_of_first import weights_of_first

# Enough: a wrong template or a shifted label affects every row, and decoding all of a large file is slow.
GUARD_ROWS = 64


@dataclass(frozen=True)
class SftResult:
    """The result of a training; the final model is saved, the epochs are in the work folder."""

    history: TrainingHistory
    metrics: dict[str, Any]


def train_sft(
    encoded: Sequence[EncodedInstruction],
    lengths: Sequence[int],
    completion_texts: Callable[[int], list[str]],
    context: RunContext,
    config: FineTuning,
    *,
    trainable: TrainableModel,
    output: Path,
    chat_format: ChatFormat,
    max_tokens: int,
    packing: bool,
) -> SftResult:
    """Train the model of `trainable` and save it to `output`.

    Args:
        encoded: samples; the loss is taken on completions, averaged over all their tokens of an optimizer step.
        lengths: tokens of each sample.
        completion_texts: from a sample's number to the texts of its completions, to check the labels against.
        output: folder for the trained model.
        max_tokens: tokens of a packed row.
    Raises:
        StageError: if a sample of the labels does not decode to its completion, or training diverges.
        Interrupted: if a stop was requested.
    """
    from align.training.trl_trainers import sft_trainer

    # A new adapter is drawn from the global generator.
    torch.manual_seed(derive_seed(context.seed, "parameters"))
    with weights_of_first(context.spread, all_read=trainable.changes_initial_policy):
        model = load_trainable(trainable, frozen_dtype=frozen_dtype(config.precision))
    count = count_trained(model)
    set_dropout(model, config.dropout)
    limit = from_first(longest_shared_row(model) if has_weights(model) else None) if packing else None
    if limit is not None and limit < max_tokens:
        context.note(
            f"samples share rows of at most {limit} tokens, others have a row of their own (slower, same result): this model "
            + ("does not keep samples of a row apart" if limit == 1 else "needs a mask that grows with the square of a row")
        )
    rows = PackedRows(encoded, pack_rows(lengths, max_tokens, limit) if packing else [[i] for i in range(len(encoded))])
    _guard_labels(rows, completion_texts, chat_format)
    arguments = training_arguments(config, context, num_rows=len(rows))
    trainer = sft_trainer(shard(model, context.spread), chat_format, rows, arguments)
    save = lambda folder: save_trained(trainer.model, chat_format, folder, trainable)  # noqa: E731
    tokens, keeps_all = sum(lengths), config.keep_epochs == "all"
    history = train_and_save(trainer, save, context, config, output, every_epoch=keeps_all, per_epoch={"tokens": tokens})
    room = len(rows) * max_tokens if packing else tokens
    metrics = {
        "train_loss": history.of_last_epoch("loss", rows=len(rows), batch_size=config.batch_size),
        "steps": history.steps,
        "packed_rows": len(rows),
        "tokens": tokens,
        "trained_tokens": tokens * config.num_epochs,
        "row_fill": tokens / room,
        "trained_parameters": count,
        "precision": resolve_precision(config.precision),
        "micro_batch_size": trainer.pass_size.size,
        "gradient_checkpointing": trainer.pass_size.recomputes,
    }
    return SftResult(history, metrics)


def _guard_labels(rows: PackedRows, completion_texts: Callable[[int], list[str]], chat_format: ChatFormat) -> None:
    """Decode the labels of a sample of rows, as the trainer will see them, and compare them with the completions."""
    step = max(1, len(rows) // GUARD_ROWS)
    chosen = list(range(0, len(rows), step))
    labels = PackedCollator(chat_format.pad_token_id)([rows[index] for index in chosen])["labels"]
    expected = [text for index in chosen for sample in rows.samples_of(index) for text in completion_texts(sample)]
    check_label_spans(labels.tolist(), expected, chat_format)
