"""Best of n: the highest-scored completions of every prompt, to fine-tune on (rejection sampling)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from align.records import Drop, Instruction
from align.selection.candidate import Group, PromptCandidates
from align.selection.ranking import RankingRule, rank_candidates
from align.selection.selector import SelectionTally, Totals, messages_of, rule_of, select_from_groups
from align.strict import Strict


class BestRule(Strict):
    """What decides which completions of a prompt are kept."""

    scorer: str = Field(min_length=1)
    """Name of the scorer that ranks."""
    keep: int = Field(default=1, ge=1)
    """Candidates kept per prompt."""
    min_score: float | None = None
    """A candidate below this is not kept."""
    keep_truncated: bool = False
    """Keep candidates that were cut at the token limit."""

    @cached_property
    def ranking(self) -> RankingRule:
        """How candidates are ordered."""
        return RankingRule(scorers={self.scorer: 1.0}, keep_truncated=self.keep_truncated)


def best_of_n(groups: Iterable[Group], **settings: Any) -> tuple[list[Instruction], list[Drop]]:
    """Keep the best different completions of every prompt.

    Candidates without a finite score are left out. Equal scores are ordered by candidate_index, equal texts count once, and a
    prompt with fewer than `keep` good completions gives those it has.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        settings: the fields of `BestRule`: `scorer`, which must be given, `keep`, `min_score` and `keep_truncated`.
    Returns:
        Instructions in the order of the prompts, best first, with the id `prompt_id` (or `prompt_id/candidate_index` when
        `keep` > 1), and one drop for every prompt that gives none: truncated, nonfinite_score, too_few_candidates,
        below_min_score.
    Raises:
        StageError: if a candidate has no score by `scorer`.
        ValueError: if a setting is unknown or out of bounds, or a group does not hold exactly one prompt.
    """
    return select_from_groups(groups, BestSelector(rule_of(BestRule, settings)))


@dataclass(frozen=True)
class BestSelector:
    """The best completions by a rule."""

    rule: BestRule

    @property
    def scorers(self) -> Sequence[str]:
        return [self.rule.scorer]

    def select(self, candidates: PromptCandidates, tally: SelectionTally) -> tuple[list[Instruction], list[Drop]]:
        """The kept completions of one prompt, best first, or the drop of a prompt that gives none."""
        kept = self._best(candidates)
        positions = [] if isinstance(kept, Drop) else kept
        for position, score in enumerate(candidates.scores[0]):
            if score is not None and math.isfinite(score):
                tally.values["all"].append(score)
                if position in positions:
                    tally.values["kept"].append(score)
        if isinstance(kept, Drop):
            return [], [kept]
        messages, row_id = messages_of(candidates), candidates.prompt_id
        return [
            Instruction(
                # Ids must be unique; with one row per prompt the prompt's own id is enough, and later stages can join by it.
                id=f"{row_id}/{candidates.indices[position]}" if self.rule.keep > 1 else row_id,
                prompt=messages,
                completion=candidates.texts[position],
            )
            for position in kept
        ], []

    def _best(self, candidates: PromptCandidates) -> list[int] | Drop:
        """Positions of what is kept, best first."""
        rule, ranked = self.rule, rank_candidates(candidates, self.rule.ranking)
        if not ranked.order:
            return ranked.too_few()
        # In ranked order, so that among equal texts the one with the best score stays and is compared with `min_score`.
        good = ranked.different_texts(ranked.order)
        if rule.min_score is not None:
            good = [position for position in good if ranked.rank[position] >= rule.min_score]
            if not good:
                detail = f"best score {ranked.rank[ranked.order[0]]:g}, min_score {rule.min_score:g}"
                return Drop(id=candidates.prompt_id, drop_reason="below_min_score", detail=detail)
        return good[: rule.keep]

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """Mean score of the kept completions, one for every row, and of all candidates with a score."""
        return {"score_mean_kept": totals.mean("kept"), "score_mean_all": totals.mean("all")}
