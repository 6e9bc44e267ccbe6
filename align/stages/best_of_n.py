"""Keep the best candidates of every prompt, for rejection sampling: they become instructions to fine-tune on.

In: scored candidates. Out: instructions. Every prompt that gives none is in `drops.jsonl` with its reason.
Metrics: mean score of kept and of all candidates, drops by reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from align.config.base import Problem
from align.config.checks import check_scorers
from align.config.graph import RecipeGraph
from align.config.row_need import RowNeed
from align.config.sections import ScoredInput
from align.selection.best_of_n import BestRule, BestSelector
from align.selection.candidate import score_needs
from align.stage import StageConfig, StageContext, StageOutcome

VERSION = 1


class Config(StageConfig, ScoredInput, BestRule):
    """Best of n by one scorer."""

    def row_needs(self) -> Iterator[RowNeed]:
        yield from score_needs("scored", {("scorer",): self.scorer})

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        yield from check_scorers(fields, graph)


def run(context: StageContext[Config]) -> StageOutcome:
    """Keep the best prompt by prompt, account for every prompt."""
    from align.selection.run import run_selection

    config = context.config
    return run_selection(context, context.artifact(config.scored), BestSelector(config))
