"""DPO with a reference that is computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align.attempt import Attempt
from align.config.sections import Optimization
from align.data.encoding import EncodedPreference
from align.data.template import ChatFormat
from align.errors import StageError
from align.models.load import load_causal_lm
from align.models.save import save_model
from align.scoring.likelihood import completion_logps
from align.training.loop import TrainingHistory, resolve_precision, train, training_arguments

REFERENCE_BATCH_TOKENS = 8192
CHECKED_PAIRS = 16
# How far the loss at step 0 may be from ln 2: rounding of the two forward passes, which are padded differently.
STEP_ZERO_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}


def reference_logps(
    model: Any, pairs: Sequence[EncodedPreference], attempt: Attempt, *, pad_token_id: int, precision: str
) -> list[tuple[float, float]]:
    """(chosen, rejected) log-probabilities under `model`, summed over the completion, in nats."""
    rows = [(row.prompt_ids, ids) for row in pairs for ids in (row.chosen_ids, row.rejected_ids)]
    logps = completion_logps(
        model,
        rows,
        pad_token_id=pad_token_id,
        batch_tokens=REFERENCE_BATCH_TOKENS,
        autocast=torch.bfloat16 if precision == "bfloat16" else None,
        report=lambda done: attempt.progress.update("reference", done, len(rows), "completions"),
    )
    return [(logps[i], logps[i + 1]) for i in range(0, len(logps), 2)]


def train_dpo(
    pairs: Sequence[EncodedPreference],
    attempt: Attempt,
    config: Optimization,
    *,
    source: Path,
    output: Path,
    chat_format: ChatFormat,
    beta: float,
    label_smoothing: float,
) -> tuple[TrainingHistory, dict[str, Any]]:
    """Train a copy of the model in `source` against itself as reference, and save it to `output`.

    Raises:
        StageError: if the loss at step 0 is not ln 2 (policy and reference differ), or training diverges.
        Interrupted: if a stop was requested.
    """
    from align.training.trl_trainers import dpo_trainer

    model = load_causal_lm(source, dtype="float32").eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(config.precision)
    reference = reference_logps(model, pairs, attempt, pad_token_id=chat_format.pad_token_id, precision=precision)
    rows = [
        {
            "prompt_ids": row.prompt_ids,
            "chosen_ids": row.chosen_ids,
            "rejected_ids": row.rejected_ids,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        for row, (chosen, rejected) in zip(pairs, reference, strict=True)
    ]
    arguments = training_arguments(config, attempt, num_rows=len(rows))
    trainer = dpo_trainer(model, chat_format.tokenizer, rows, arguments, beta=beta, label_smoothing=label_smoothing)
    first_loss = _check_step_zero(trainer, precision)
    history = train(trainer, attempt)
    save_model(trainer.model, chat_format.tokenizer, output)
    names = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
    metrics: dict[str, Any] = {name: history.last(name) for name in names}
    return history, {"loss_at_step_0": first_loss, **metrics, "steps": trainer.state.global_step, "precision": precision}


@torch.no_grad()
def _check_step_zero(trainer: Any, precision: str) -> float:
    """The loss of the first pairs before any update; where policy and reference are the same model it is ln 2 exactly."""
    trainer.model.eval()
    count = min(CHECKED_PAIRS, len(trainer.train_dataset))
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[index] for index in range(count)]))
    with trainer.compute_loss_context_manager():
        loss = float(trainer.compute_loss(trainer.model, inputs))
    for collected in trainer._metrics.values():
        collected.clear()  # this pass is no training step
    if not abs(loss - math.log(2)) <= STEP_ZERO_TOLERANCE[precision]:
        raise StageError(
            f"The DPO loss before the first step is {loss:.6f}, not ln 2 = {math.log(2):.6f}: policy and reference differ",
            hint="This is a fault of the model's files or of align, not of your recipe; please report it with the log.",
        )
    return loss
