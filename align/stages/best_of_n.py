"""Keep the best candidates of every prompt, for rejection sampling: they become instructions to fine-tune on.

In: scored candidates. Out: instructions. Every prompt that gives none is in `drops.jsonl` with its reason.
Metrics: mean score of kept and of all candidates, drops by reason.
"""

from __future__ import annotations

from pydantic import Field

from align.config.reference import ScoredCandidatesReference
from align.stages.protocol import StageConfig

VERSION = 1


class Config(StageConfig):
    """Best of n by one scorer."""

    scored: ScoredCandidatesReference
    """Scored candidates."""
    scorer: str = Field(min_length=1)
    """Name of the scorer that ranks."""
    keep: int = Field(default=1, ge=1)
    """Candidates kept per prompt."""
    min_score: float | None = None
    """A candidate below this is not kept."""
    keep_truncated: bool = False
    """Keep candidates that were cut at the token limit."""
