"""Build preference pairs from scored candidates.

In: scored candidates. Out: preferences. Whatever gives no pair is in `drops.jsonl` with its reason.
Metrics: margins, lengths, share of pairs whose longer side was chosen, drops by reason; with several scorers how often they
disagree, with a length penalty how many pairs it turned round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from align.config.base import Problem
from align.config.checks import check_scorers, check_several_candidates
from align.config.graph import RecipeGraph
from align.config.reference import FieldPath
from align.config.row_need import RowNeed
from align.config.sections import ScoredInput
from align.selection.candidate import score_needs
from align.selection.pair import PairSelector
from align.selection.pair_rule import PairRule
from align.stage import StageConfig, StageContext, StageOutcome

VERSION = 2


class Config(StageConfig, ScoredInput, PairRule):
    """Preference pairs by one scorer or several."""

    def row_needs(self) -> Iterator[RowNeed]:
        scorers: dict[FieldPath, str] = {("scorers", name): name for name in self.scorers or ()}
        yield from score_needs("scored", scorers if self.scorer is None else {("scorer",): self.scorer})

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        yield from check_scorers(fields, graph)
        scored = fields.get("scored")
        draft = graph.drafts.get(scored) if isinstance(scored, str) else None
        if draft is not None:
            yield from check_several_candidates(draft.fields.get("candidates"), graph, "scored", "a pair")


def run(context: StageContext[Config]) -> StageOutcome:
    """Pair prompt by prompt, account for every prompt."""
    from align.selection.run import run_selection

    config = context.config
    return run_selection(context, context.artifact(config.scored), PairSelector(config, context.seed))
