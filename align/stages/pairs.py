"""Build preference pairs from scored candidates.

In: scored candidates. Out: preferences. Whatever gives no pair is in `drops.jsonl` with its reason.
Metrics: margins, lengths, share of pairs whose longer side was chosen, drops by reason; with several scorers how often they
disagree, with a length penalty how many pairs it turned round.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from align.config.reference import RowsReference
from align.config.selection import Combine, OnLengthFlip, PairPolicy
from align.records import ScoredCandidate
from align.selection.pair import PairRule
from align.stage import StageConfig, StageContext, StageOutcome

VERSION = 1


class Config(StageConfig):
    """Preference pairs by one scorer or several."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"num_processes"})

    scored: RowsReference[ScoredCandidate]
    """Scored candidates."""
    scorer: str | None = Field(default=None, min_length=1)
    """Name of the scorer that ranks. Or scorers."""
    scorers: dict[str, float] | None = Field(default=None, min_length=1)
    """Weight by scorer, where several rank together: {rm: 1.0, gold: 0.5}."""
    combine: Combine | None = None
    """With scorers: add up weighted scores, weighted standard scores per prompt (z_scores), or shares of candidates beaten
    (vote). Default: weighted_sum."""
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    """With scorers: share of their weight that must strictly prefer the chosen completion. Default: 0."""
    policy: PairPolicy = "max_min"
    """Which candidates stand against each other; the page on pairs has the formulas."""
    min_margin: float = Field(default=0.0, ge=0)
    """A pair whose scores are closer than this is dropped."""
    max_margin: float | None = Field(default=None, gt=0)
    """For policy margin_window, which needs it: largest margin."""
    sigmas: float | None = Field(default=None, gt=0)
    """For policy mean_sigma: distance from the mean, in standard deviations. Default: 2."""
    k: int | None = Field(default=None, ge=1)
    """For policy top_k_bottom_k: candidates from either end. Default: 2."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """For policy length_matched: most characters of the longer completion for one of the shorter. Default: 1.25."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score for every 100 characters, before ranking."""
    on_length_flip: OnLengthFlip | None = None
    """With length_penalty: what to do with a pair whose order follows from the penalty alone. Default: drop."""
    keep_truncated: bool = False
    """Use candidates that were cut at the token limit."""
    rso_beta: float | None = Field(default=None, gt=0)
    """For policy rso: temperature of acceptance, in the unit of the scores. Default: 0.5."""
    rso_accept: int | None = Field(default=None, ge=2)
    """For policy rso: candidates that are accepted before two are drawn. Default: 2."""
    num_processes: int | None = Field(default=None, ge=1)
    """Most processes that select at the same time. Default: one per core."""

    @model_validator(mode="after")
    def _options_fit(self) -> Config:
        self.rule(0)
        return self

    def rule(self, seed: int) -> PairRule:
        """What decides the pairs."""
        options = self.model_dump(exclude={"scored", "seed", "num_processes"})
        return PairRule(**options, seed=seed)


def run(context: StageContext[Config]) -> StageOutcome:
    """Pair prompt by prompt, account for every prompt."""
    from align.selection.columns.chunk import files_of
    from align.selection.columns.selector import PairSelector
    from align.selection.columns.shards import select_from_files

    config = context.config
    selected = select_from_files(
        files_of(context.artifact(config.scored)),
        PairSelector(config.rule(context.seed)),
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
