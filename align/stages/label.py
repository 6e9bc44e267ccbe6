"""Label scored candidates good or bad, for methods that learn from single completions, such as KTO.

In: scored candidates. Out: labelled completions. Every prompt that gives none is in `drops.jsonl` with its reason.
Metrics: share of good completions, mean scores and lengths of good and of bad ones, drops by reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from align.config.base import Problem
from align.config.checks import check_scorers, check_several_candidates
from align.config.graph import RecipeGraph
from align.config.row_need import RowNeed
from align.config.sections import ScoredInput
from align.selection.candidate import score_needs
from align.selection.label import LabelRule, LabelSelector
from align.stage import StageConfig, StageContext, StageOutcome

VERSION = 1


class Config(StageConfig, ScoredInput, LabelRule):
    """Labels by one scorer."""

    def row_needs(self) -> Iterator[RowNeed]:
        yield from score_needs("scored", {("scorer",): self.scorer})

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        yield from check_scorers(fields, graph)
        scored = fields.get("scored")
        draft = graph.drafts.get(scored) if isinstance(scored, str) else None
        if draft is not None and fields.get("threshold") is None:
            yield from check_several_candidates(draft.fields.get("candidates"), graph, "scored", "a label without a threshold")


def run(context: StageContext[Config]) -> StageOutcome:
    """Label prompt by prompt, account for every prompt."""
    from align.selection.run import run_selection

    config = context.config
    return run_selection(context, context.artifact(config.scored), LabelSelector(config))
