"""Compare models: the same held-out prompts, the same engine and seeds, the same scorers, paired statistics.

In: models, prompts, scorers. Out: a comparison (`results.json`, `report.html`, every answer in `rows.jsonl`).
Metrics: those of results.json: score means and paired differences with 95 % intervals, win rates, KL to the baseline,
completion length, share of completions that end by themselves, distinct-2, perplexity on retention text, training seconds.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import ModelReference, PromptsReference, TextReference
from align.config.sections import GenerationEngine, OnInvalid, Sampling, Scorer
from align.stages.protocol import StageConfig

VERSION = 1


class Config(Sampling, GenerationEngine, StageConfig):
    """Compare models on held-out prompts."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"num_workers", "batch_tokens"})
    labels_matter: ClassVar[bool] = True

    models: list[ModelReference] = Field(min_length=1)
    """Models to compare."""
    baseline: ModelReference
    """The model that differences, win rates and KL are against; one of `models`."""
    prompts: PromptsReference
    """Held-out prompts; none may occur in the training data."""
    scorers: dict[str, Scorer] = Field(min_length=1)
    """Scorer by name: the name of a reward model stage, or {rules: …}."""
    retention: TextReference | None = None
    """Plain text on which forgetting is measured as perplexity."""
    num_candidates: int = Field(default=1, ge=1)
    """Completions per prompt and model; scores are averaged per prompt before the statistics."""
    bootstrap_resamples: int = Field(default=10_000, ge=100)
    """Resamples of the paired bootstrap over prompts."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a reward model; scores do not depend on it."""
    on_invalid: OnInvalid = "error"
    """What to do with a prompt that is too long."""
