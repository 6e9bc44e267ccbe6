"""Build preference pairs from scored candidates.

In: scored candidates. Out: preferences. Every prompt that gives no pair is in `drops.jsonl` with its reason.
Metrics: margins, lengths, share of pairs whose longer side was chosen, drops by reason.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.config.reference import ScoredCandidatesReference
from align.stages.protocol import StageConfig

VERSION = 1


class Config(StageConfig):
    """Preference pairs by one scorer."""

    scored: ScoredCandidatesReference
    """Scored candidates."""
    scorer: str = Field(min_length=1)
    """Name of the scorer that ranks."""
    policy: Literal["max_min", "max_random", "best_vs_second"] = "max_min"
    """Which candidate stands against the best: the worst, a random other, or the second best."""
    min_margin: float = Field(default=0.0, ge=0)
    """A pair whose scores are closer than this is dropped."""
    keep_truncated: bool = False
    """Use candidates that were cut at the token limit."""
