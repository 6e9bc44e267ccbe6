"""Keep the best candidates of every prompt, for rejection sampling: they become instructions to fine-tune on.

In: scored candidates. Out: instructions. Every prompt that gives none is in `drops.jsonl` with its reason.
Metrics: mean score of kept and of all candidates, drops by reason.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import RowsReference
from align.records import ScoredCandidate
from align.selection.best_of_n import BestRule
from align.stage import StageConfig, StageContext, StageOutcome

VERSION = 1


class Config(StageConfig):
    """Best of n by one scorer."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"num_processes"})

    scored: RowsReference[ScoredCandidate]
    """Scored candidates."""
    scorer: str = Field(min_length=1)
    """Name of the scorer that ranks."""
    keep: int = Field(default=1, ge=1)
    """Candidates kept per prompt."""
    min_score: float | None = None
    """A candidate below this is not kept."""
    keep_truncated: bool = False
    """Keep candidates that were cut at the token limit."""
    num_processes: int | None = Field(default=None, ge=1)
    """Most processes that select at the same time. Default: one per core."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Keep the best prompt by prompt, account for every prompt."""
    from align.selection.columns.chunk import files_of
    from align.selection.columns.selector import BestSelector
    from align.selection.columns.shards import select_from_files

    config = context.config
    rule = BestRule(scorer=config.scorer, keep=config.keep, min_score=config.min_score, keep_truncated=config.keep_truncated)
    selected = select_from_files(
        files_of(context.artifact(config.scored)),
        BestSelector(rule),
        name=context.name,
        output=context.output,
        work=context.work,
        count=context.counter("select", "tasks"),
        check_stop=context.check_stop,
        num_processes=config.num_processes,
    )
    return StageOutcome(
        metrics=dict(selected.metrics),
        rows_in=selected.num_prompts,
        rows_out=selected.num_rows,
        dropped=dict(selected.dropped),
    )
