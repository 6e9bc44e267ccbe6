"""From pairs to a trained and saved model: the part that DPO, ORPO and the reward model share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align.config.sections import Optimization
from align.data.template import ChatFormat
from align.models.dropout import set_dropout
from align.models.start import Start, count_trained, save_trained
from align.runtime.context import RunContext
from align.training.loop import TrainingHistory, resolve_precision, train, training_arguments
from align.training.pairwise.forward import add_pair_outputs
from align.training.pairwise.layout import PairCollator, TrainingPair
from align.training.pairwise.objective import Objective
from align.training.pairwise.trainer import PairwiseTrainer


def prepare_model(model: Any) -> Any:
    """The model on the device of training, without dropout, giving what pairwise losses are made of.

    Dropout would make the policy differ from a reference that is itself.
    """
    set_dropout(model, 0.0)
    add_pair_outputs(model)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def pairwise_trainer(
    model: Any,
    pairs: Sequence[TrainingPair],
    context: RunContext,
    config: Optimization,
    objective: Objective,
    collator: PairCollator,
) -> PairwiseTrainer:
    """A trainer of a model that was prepared."""
    return PairwiseTrainer(model, pairs, objective, collator, training_arguments(config, context, num_rows=len(pairs)))


def train_and_save(
    trainer: PairwiseTrainer,
    context: RunContext,
    config: Optimization,
    chat_format: ChatFormat,
    output: Path,
    start: Start,
    *,
    shown: Sequence[str],
) -> tuple[TrainingHistory, dict[str, Any]]:
    """Train to the end and save what was trained to `output`.

    Args:
        shown: names of the logged metrics whose last values go into the manifest.
    Raises:
        StageError: if training diverges. Interrupted: if a stop was requested.
    """
    history = train(trainer, context)
    save_trained(trainer.model, chat_format.tokenizer, output, start)
    facts = {
        "steps": trainer.state.global_step,
        "trained_parameters": count_trained(trainer.model),
        "precision": resolve_precision(config.precision),
        "batch_form": trainer.data_collator.form,
    }
    return history, {**{name: history.last(name) for name in shown}, **facts}
