"""Supervised fine-tuning: teach a model to give the completions of a file.

Cross-entropy on the completion's tokens only (InstructGPT, Ouyang et al. 2022, §3.5; cosine decay as there).
In: a model with a chat template, instructions. Out: a model, and one checkpoint per epoch under `epochs/`.
Metrics: loss, learning rate and gradient norm per logging step.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import InstructionsReference, ModelReference
from align.config.sections import OnInvalid, Optimization
from align.stages.protocol import StageConfig

VERSION = 1


class Config(Optimization, StageConfig):
    """Supervised fine-tuning on instructions."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from."""
    data: InstructionsReference
    """Prompts and the completions to imitate."""
    max_tokens: int = Field(default=1024, ge=8)
    """A prompt and completion longer than this together is an error, or a counted drop."""
    on_invalid: OnInvalid = "error"
    """What to do with a row that is too long."""
    packing: bool = True
    """Several short samples share a row of max_tokens; they do not see each other."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout set on every dropout field of the model's configuration while training."""
