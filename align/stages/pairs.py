"""Build preference pairs from scored candidates.

In: scored candidates. Out: preferences. Every prompt that gives no pair is in `drops.jsonl` with its reason.
Metrics: margins, lengths, share of pairs whose longer side was chosen, drops by reason.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from align.config.reference import ScoredCandidatesReference
from align.records import Preference, ScoredCandidate
from align.selection.candidate import group_candidates, require_rows
from align.selection.pair import PairPolicy, build_pairs
from align.stages.protocol import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, ROWS_NAME, write_rows

VERSION = 1


class Config(StageConfig):
    """Preference pairs by one scorer."""

    scored: ScoredCandidatesReference
    """Scored candidates."""
    scorer: str = Field(min_length=1)
    """Name of the scorer that ranks."""
    policy: PairPolicy = "max_min"
    """Which candidate stands against the best: the worst, a random other, or the second best. rso: two that statistical rejection
    sampling accepts."""
    min_margin: float = Field(default=0.0, ge=0)
    """A pair whose scores are closer than this is dropped."""
    keep_truncated: bool = False
    """Use candidates that were cut at the token limit."""
    rso_beta: float | None = Field(default=None, gt=0)
    """For policy rso: temperature of acceptance, in the unit of the scores. Default: 0.5."""
    rso_accept: int | None = Field(default=None, ge=2)
    """For policy rso: candidates that are accepted before two are drawn. Default: 2."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Group by prompt, pair, account for every prompt."""
    config = context.config
    groups = group_candidates(context.artifact(config.scored).rows(ScoredCandidate))
    pairs, drops = build_pairs(
        groups,
        scorer=config.scorer,
        policy=config.policy,
        min_margin=config.min_margin,
        seed=context.seed,
        keep_truncated=config.keep_truncated,
        rso_beta=config.rso_beta,
        rso_accept=config.rso_accept,
    )
    require_rows(pairs, drops, context.name)
    write_rows(context.output / ROWS_NAME, pairs)
    write_rows(context.output / DROPS_NAME, drops)
    return StageOutcome(
        metrics=describe_pairs(pairs),
        rows_in=len(groups),
        rows_out=len(pairs),
        dropped=dict(Counter(drop.drop_reason for drop in drops)),
    )


def describe_pairs(pairs: Sequence[Preference]) -> dict[str, Any]:
    """Margins, lengths in characters, and how often the longer side was chosen: a share far from 0.5 teaches length."""
    scores = [(pair.chosen_score, pair.rejected_score) for pair in pairs]
    margins = [chosen - rejected for chosen, rejected in scores if chosen is not None and rejected is not None]
    longer = [1.0 if len(p.chosen) > len(p.rejected) else 0.5 if len(p.chosen) == len(p.rejected) else 0.0 for p in pairs]
    return {
        "margin_mean": statistics.fmean(margins),
        "margin_min": min(margins),
        "chosen_characters_mean": statistics.fmean(len(pair.chosen) for pair in pairs),
        "rejected_characters_mean": statistics.fmean(len(pair.rejected) for pair in pairs),
        "longer_chosen_share": statistics.fmean(longer),
    }
