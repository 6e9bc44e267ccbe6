"""Supervised fine-tuning: teach a model to give the completions of a file.

Cross-entropy on the completion's tokens only (InstructGPT, Ouyang et al. 2022, §3.5; cosine decay as there).
In: a model with a chat template, instructions. Out: a model, and one checkpoint per epoch under `epochs/`.
Metrics: loss, learning rate and gradient norm per logging step.
"""

from __future__ import annotations

import shutil
from typing import ClassVar

from pydantic import Field

from align.config.reference import InstructionsReference, ModelReference
from align.config.sections import OnInvalid, Optimization
from align.data.encoding import encode_instructions
from align.data.template import ChatFormat
from align.models.folder import context_tokens
from align.records import Instruction
from align.stages.protocol import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, write_rows

VERSION = 2


class Config(Optimization, StageConfig):
    """Supervised fine-tuning on instructions."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from."""
    data: InstructionsReference
    """Prompts and the completions to imitate."""
    max_tokens: int = Field(default=1024, ge=8)
    """A prompt and completion longer than this together, or than the model can see, is an error, or a counted drop."""
    on_invalid: OnInvalid = "error"
    """What to do with a row that is too long."""
    packing: bool = True
    """Several short samples share a row of max_tokens; they do not see each other."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of every layer that has one, while training; the saved model keeps its own."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Encode and check every row, train on packed rows, keep the model and one checkpoint per epoch."""
    from align.models.load import load_tokenizer
    from align.training.sft import EPOCHS_NAME, train_sft

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.data)
    chat_format = ChatFormat(load_tokenizer(source.model_path), where=source.where(None))
    limit = min(config.max_tokens, context_tokens(source.model_path))
    records = data.rows(Instruction)
    encoded = encode_instructions(records, chat_format, max_tokens=limit, on_invalid=config.on_invalid, where=data.where)
    completions = {record.id: record.completion for record in records}
    result = train_sft(
        encoded.rows,
        [completions[row.id] for row in encoded.rows],
        context,
        config,
        source=source.model_path,
        output=context.output / MODEL_FOLDER,
        chat_format=chat_format,
        max_tokens=limit,
        packing=config.packing,
        dropout=config.dropout,
    )
    write_rows(context.output / DROPS_NAME, encoded.drops)
    result.history.write(context.output / METRICS_NAME)
    # Copied, not moved: a kill before the commit must find them in the work folder again.
    shutil.copytree(context.work / EPOCHS_NAME, context.output / EPOCHS_NAME)
    return StageOutcome(metrics=result.metrics, rows_in=len(records), rows_out=len(encoded.rows), dropped=encoded.dropped())
