"""Best of n: the highest-scored completions of every prompt, to fine-tune on (rejection sampling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from align.records import Drop, Instruction
from align.selection.candidate import Group, in_columns
from align.selection.ranking import PromptCandidates, Ranking, rank_candidates


@dataclass(frozen=True, kw_only=True)
class BestRule:
    """Everything that decides which completions of a prompt are kept; `best_of_n` says what the options mean.

    Raises:
        ValueError: if `keep` < 1.
    """

    scorer: str
    keep: int = 1
    min_score: float | None = None
    keep_truncated: bool = False

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, not {self.keep}")

    @cached_property
    def ranking(self) -> Ranking:
        """How candidates are ordered."""
        return Ranking(scorers={self.scorer: 1.0}, keep_truncated=self.keep_truncated)


class Kept(NamedTuple):
    """A kept completion: its position among the prompt's candidates, and its row's id."""

    id: str
    position: int


def best_of_n(
    groups: Sequence[Group],
    *,
    scorer: str,
    keep: int = 1,
    min_score: float | None = None,
    keep_truncated: bool = False,
) -> tuple[list[Instruction], list[Drop]]:
    """Keep the `keep` best different completions of every prompt.

    Candidates without a finite score are left out. Equal scores are ordered by candidate_index, equal texts count once, and a
    prompt with fewer than `keep` good completions gives those it has.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        scorer: name of the score that ranks; higher is better.
        keep: most completions per prompt, at least 1.
        min_score: a completion with a lower score is not kept.
        keep_truncated: use candidates that were cut at the token limit.
    Returns:
        Instructions in the order of the prompts, best first, with the id `prompt_id` (or `prompt_id/candidate_index` when
        `keep` > 1), and one drop for every prompt that gives none: truncated, nonfinite_score, too_few_candidates,
        below_min_score.
    Raises:
        StageError: if a candidate has no score by `scorer`.
        ValueError: if `keep` < 1 or a group does not hold exactly one prompt.
    """
    rule = BestRule(scorer=scorer, keep=keep, min_score=min_score, keep_truncated=keep_truncated)
    rows: list[Instruction] = []
    drops: list[Drop] = []
    for group in groups:
        candidates = in_columns(group, [scorer])
        best = best_of(candidates, rule)
        if isinstance(best, Drop):
            drops.append(best)
        else:
            rows.extend(Instruction(id=one.id, prompt=group[0].prompt, completion=candidates.texts[one.position]) for one in best)
    return rows, drops


def best_of(candidates: PromptCandidates, rule: BestRule) -> list[Kept] | Drop:
    """The kept completions of one prompt, best first, or the drop of a prompt that gives none."""
    ranked = rank_candidates(candidates, rule.ranking)
    if not ranked.order:
        return ranked.too_few()
    good = ranked.different_texts(ranked.order)
    if rule.min_score is not None:
        good = [position for position in good if ranked.rank[position] >= rule.min_score]
        if not good:
            detail = f"best score {ranked.rank[ranked.order[0]]:g}, min_score {rule.min_score:g}"
            return Drop(id=candidates.prompt_id, drop_reason="below_min_score", detail=detail)
    numbered = rule.keep > 1
    return [
        Kept(f"{candidates.prompt_id}/{candidates.indices[position]}" if numbered else candidates.prompt_id, position)
        for position in good[: rule.keep]
    ]
