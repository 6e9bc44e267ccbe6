"""Keep the best candidates of every prompt, for rejection sampling: they become instructions to fine-tune on.

In: scored candidates. Out: instructions. Every prompt that gives none is in `drops.jsonl` with its reason.
Metrics: mean score of kept and of all candidates, drops by reason.
"""

from __future__ import annotations

import statistics
from collections import Counter

from pydantic import Field

from align.config.reference import ScoredCandidatesReference
from align.records import ScoredCandidate
from align.selection.best_of_n import best_of_n
from align.selection.candidate import group_candidates, require_rows
from align.stages.protocol import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, ROWS_NAME, write_rows

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


def run(context: StageContext[Config]) -> StageOutcome:
    """Group by prompt, keep the best, account for every prompt."""
    config = context.config
    rows = context.artifact(config.scored).rows(ScoredCandidate)
    groups = group_candidates(rows)
    kept, drops = best_of_n(
        groups, scorer=config.scorer, keep=config.keep, min_score=config.min_score, keep_truncated=config.keep_truncated
    )
    require_rows(kept, drops, context.name)
    write_rows(context.output / ROWS_NAME, kept)
    write_rows(context.output / DROPS_NAME, drops)
    kept_texts = {(row.id.rsplit("/", 1)[0] if config.keep > 1 else row.id, row.completion) for row in kept}
    scores = [(row.scores[config.scorer], (row.prompt_id, row.completion) in kept_texts) for row in rows]
    all_scores = [score for score, _ in scores if score is not None]
    kept_scores = [score for score, is_kept in scores if score is not None and is_kept]
    return StageOutcome(
        metrics={"score_mean_kept": statistics.fmean(kept_scores), "score_mean_all": statistics.fmean(all_scores)},
        rows_in=len(groups),
        rows_out=len(kept),
        dropped=dict(Counter(drop.drop_reason for drop in drops)),
    )
