"""The models that a training leaves: after each epoch where they are kept, and after the last, which is the trained model.

work/epochs/epoch-N/    whole or absent
work/epoch-N.json       its seal: what an interrupted training resumes with is what was saved
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
from align.store.atomic import fsync_folder, link_tree, sync_tree
from align.store.seal import folder_problem, read_work, seal_folder, write_work
from align.training import checkpoint
from align.training.loop import TrainingHistory, train
from align.training.sharding import whole
from align.training.step import StepTrainer

HISTORY_NAME, HISTORY_KEY = "history.json", "history"


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

    done = None
    if context.is_first:
        _begin_again_if_damaged(context)
        done = read_work(record, on_damage=context.note) if trained.is_dir() else None
    if (done := from_first(done)) is not None:
        history = TrainingHistory(**json.loads(done[HISTORY_KEY]))
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
            # As text: no seal is made over NaN, which a metric may be.
            write_work(record, {HISTORY_KEY: json.dumps(asdict(history))})
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
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("tmp", "old"))
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)  # a kill while it is removed must not leave a part of it
        shutil.rmtree(old)
    save(temporary)
    # A resumed training takes an earlier epoch as it finds it, also after a power cut.
    sync_tree(temporary)
    seal_folder(temporary, _seal_of(folder), called=folder.name)
    os.replace(temporary, folder)
    fsync_folder(folder.parent)


def _seal_of(epoch: Path) -> Path:
    return epoch.parent.with_name(f"{epoch.name}.json")


def _begin_again_if_damaged(context: RunContext) -> None:
    """If a model that an earlier attempt saved is damaged, train from the start: no later checkpoint can make it again."""
    for epoch in sorted((context.work / EPOCHS_NAME).glob("epoch-*")):
        if (problem := folder_problem(epoch, _seal_of(epoch))) is not None:
            context.note(f"{epoch.name} is not used ({problem}); training begins again")
            (context.work / HISTORY_NAME).unlink(missing_ok=True)
            for folder in (context.work / EPOCHS_NAME, context.work / checkpoint.FOLDER_NAME):
                shutil.rmtree(folder, ignore_errors=True)
            return
