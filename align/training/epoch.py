"""The models that a training leaves: after each epoch where they are kept, and after the last, which is the trained model.

work/epochs/epoch-N/    whole or absent
work/history.json       the training is done: the last epoch's model is the result
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from align.config.sections import Optimization
from align.runtime.context import RunContext
from align.runtime.group import from_first, wait_for_all
from align.store.artifact import EPOCHS_NAME
from align.store.atomic import fsync_folder, link_tree, sync_tree, write_bytes
from align.training.loop import TrainingHistory, train
from align.training.sharding import whole
from align.training.step import StepTrainer

HISTORY_NAME = "history.json"


def train_and_save(
    trainer: StepTrainer,
    save: Callable[[Path], None],
    context: RunContext,
    config: Optimization,
    output: Path,
    *,
    every_epoch: bool = False,
    per_epoch: Mapping[str, float] | None = None,
) -> TrainingHistory:
    """Train to the end and save the model to `output`. A training that was done before an interruption is not repeated.

    Args:
        save: writes the model as it is to a folder.
        every_epoch: keep the model of every epoch in `epoch_folder`, not of the last alone.
        per_epoch: see `train`.
    Raises:
        Interrupted, StageError: see `train`.
    """
    trained, record = epoch_folder(context.work, config.num_epochs), context.work / HISTORY_NAME

    def keep(epoch: int) -> None:
        if every_epoch or epoch == config.num_epochs:
            with context.saving(), whole(trainer.model, keep=context.is_first):
                if context.is_first:
                    keep_epoch(save, context.work, epoch)
                wait_for_all()

    if from_first(record.exists() and trained.is_dir()):
        history = TrainingHistory(**json.loads(record.read_bytes()))
        trainer.pass_size.keep_in(context, [trainer.model], gradient_checkpointing=config.gradient_checkpointing)
        context.note(f"training was done before, after {history.steps} steps")
        for row in history.rows:
            context.metrics(row)
    else:
        history = train(
            trainer,
            context,
            checkpoint_minutes=config.checkpoint_minutes,
            gradient_checkpointing=config.gradient_checkpointing,
            keep_epoch=keep,
            per_epoch=per_epoch,
        )
        # Last, and atomically: where it exists, the model is on the disk.
        if context.is_first:
            write_bytes(record, json.dumps(asdict(history)).encode())
    if context.is_first:
        link_tree(trained, output)
    wait_for_all()  # a reward model is measured next, by all processes
    return history


def epoch_folder(work: Path, epoch: int) -> Path:
    """Where the model is kept as it was after an epoch."""
    return work / EPOCHS_NAME / f"epoch-{epoch}"


def keep_epoch(save: Callable[[Path], None], work: Path, epoch: int) -> None:
    """Save the model as it is to `epoch_folder`, whole or not at all."""
    # An epoch may exist already: a training resumed from an older checkpoint repeats it.
    folder = epoch_folder(work, epoch)
    temporary = folder.with_name(f".{folder.name}.tmp")
    for path in (temporary, folder):
        shutil.rmtree(path, ignore_errors=True)
    save(temporary)
    # A resumed training takes an earlier epoch as it finds it, also after a power cut.
    sync_tree(temporary)
    os.replace(temporary, folder)
    fsync_folder(folder.parent)
