"""ORPO: fine-tuning and preference in one loss, without a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align.config.sections import Optimization
from align.data.encoding import EncodedPreference
from align.data.template import ChatFormat
from align.models.start import Start, load_start
from align.runtime.context import RunContext
from align.training.loop import TrainingHistory
from align.training.pairwise.fit import pairwise_trainer, prepare_model, train_and_save
from align.training.pairwise.form import choose_collator
from align.training.pairwise.layout import TrainingPair
from align.training.pairwise.objective import NllTokens, OrpoObjective

SHOWN = ("loss", "nll_loss", "log_odds_ratio", "log_odds_chosen", "rewards/accuracies", "logps/chosen", "logps/rejected")


def train_orpo(
    pairs: Sequence[EncodedPreference],
    context: RunContext,
    config: Optimization,
    *,
    start: Start,
    output: Path,
    chat_format: ChatFormat,
    odds_ratio_weight: float,
    nll_tokens: NllTokens,
) -> tuple[TrainingHistory, dict[str, Any]]:
    """Train what `start` says and save it to `output`.

    Raises:
        StageError: if training diverges. Interrupted: if a stop was requested.
    """
    torch.manual_seed(context.seed)  # a new adapter is drawn from it
    model = prepare_model(load_start(start))
    rows = [TrainingPair(row) for row in pairs]
    with_prompts = nll_tokens == "prompt_and_completion"
    collator = choose_collator(model, rows, context, pad_token_id=chat_format.pad_token_id, with_prompts=with_prompts)
    trainer = pairwise_trainer(model, rows, context, config, OrpoObjective(odds_ratio_weight), collator)
    return train_and_save(trainer, context, config, chat_format, output, start, shown=SHOWN)
