"""Sample candidates: several completions for every prompt.

Requests go to the engine as token ids, `num_candidates` per prompt in one request with a seed of its own. Work is cut into
shards whose composition the configuration fixes, so interruptions and the number of workers change no text.
In: a model, prompts. Out: candidates. Metrics: tokens, tokens per second, finish reasons, completion length.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import ModelReference, PromptsReference
from align.config.sections import GenerationEngine, OnInvalid, Sampling
from align.stages.protocol import StageConfig

VERSION = 1


class Config(Sampling, GenerationEngine, StageConfig):
    """Sample candidates from a model."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"num_workers"})

    model: ModelReference
    """Model to sample from."""
    prompts: PromptsReference
    """Prompts to continue."""
    num_candidates: int = Field(default=8, ge=1)
    """Completions per prompt."""
    on_invalid: OnInvalid = "error"
    """What to do with a prompt that is too long."""
