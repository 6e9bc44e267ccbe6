"""Score candidates with any set of scorers: reward models and declarative rules.

In: candidates, scorers. Out: the same candidates, each with one raw number per scorer. A score that is not finite is written
as null and counted, never replaced. Metrics: mean, spread and share of non-finite scores by scorer.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import CandidatesReference
from align.config.sections import Scorer
from align.stages.protocol import StageConfig

VERSION = 1


class Config(StageConfig):
    """Score candidates."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    candidates: CandidatesReference
    """Candidates to score."""
    scorers: dict[str, Scorer] = Field(min_length=1)
    """Scorer by name: the name of a reward model stage, or {rules: …}."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a reward model; scores do not depend on it."""
