"""Labelled completions from scored candidates: the good and the bad ones of a prompt, by a threshold or by their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from align.records import Drop, Labelled
from align.selection.candidate import Group, PromptCandidates
from align.selection.ranking import Ranked, RankingRule, rank_candidates
from align.selection.selector import SelectionTally, Totals, messages_of, rule_of, select_from_groups
from align.strict import Strict


class LabelRule(Strict):
    """What decides which completions of a prompt are good, bad or left out."""

    scorer: str = Field(min_length=1)
    """Name of the scorer that decides."""
    threshold: float | None = None
    """Completions with this score or more are good, all others bad. Default: the best of each prompt is good, the worst bad."""
    keep_truncated: bool = False
    """Use candidates that were cut at the token limit."""

    @cached_property
    def ranking(self) -> RankingRule:
        """How candidates are ordered."""
        return RankingRule(scorers={self.scorer: 1.0}, keep_truncated=self.keep_truncated)


def label_candidates(groups: Iterable[Group], **settings: Any) -> tuple[list[Labelled], list[Drop]]:
    """Label completions by their scores.

    Candidates without a finite score are left out, and equal texts count once, with their best score.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        settings: the fields of `LabelRule`: `scorer`, which must be given, `threshold` and `keep_truncated`.
    Returns:
        Rows in the order of the prompts with the id `prompt_id/candidate_index`: with a threshold all different texts, by
        index; else the best and the worst. And one drop for every prompt that gives none: truncated, nonfinite_score,
        too_few_candidates; without a threshold also identical and tie.
    Raises:
        StageError: if a candidate has no score by `scorer`.
        ValueError: if a setting is unknown or out of bounds, or a group does not hold exactly one prompt.
    """
    return select_from_groups(groups, LabelSelector(rule_of(LabelRule, settings)))


@dataclass(frozen=True)
class LabelSelector:
    """Good and bad completions by a rule."""

    rule: LabelRule

    @property
    def scorers(self) -> Sequence[str]:
        return [self.rule.scorer]

    def select(self, candidates: PromptCandidates, tally: SelectionTally) -> tuple[list[Labelled], list[Drop]]:
        """The labelled completions of one prompt, or the drop of a prompt that gives none."""
        ranked = rank_candidates(candidates, self.rule.ranking)
        labels = self._labels(ranked)
        if isinstance(labels, Drop):
            return [], [labels]
        messages = messages_of(candidates)
        for position, good in labels.items():
            side = "good" if good else "bad"
            tally.values[f"{side}_score"].append(ranked.rank[position])
            tally.values[f"{side}_characters"].append(len(candidates.texts[position]))
        return [
            Labelled(
                id=f"{candidates.prompt_id}/{candidates.indices[position]}",
                prompt=messages,
                completion=candidates.texts[position],
                desirable=good,
            )
            for position, good in labels.items()
        ], []

    def _labels(self, ranked: Ranked) -> dict[int, bool] | Drop:
        """Whether a completion is good, by its position."""
        threshold, rank = self.rule.threshold, ranked.rank
        different = ranked.different_texts(ranked.order)
        if len(ranked.order) < (2 if threshold is None else 1):
            return ranked.too_few()
        if threshold is not None:
            return {position: rank[position] >= threshold for position in sorted(different)}
        best, prompt_id = different[0], ranked.candidates.prompt_id
        lowest = rank[different[-1]]
        if len(different) == 1:
            return Drop(id=prompt_id, drop_reason="identical", detail=f"all {len(ranked.order)} candidates are the same text")
        if lowest == rank[best]:
            return Drop(id=prompt_id, drop_reason="tie", detail=f"all {len(different)} different texts score {lowest:g}")
        return {best: True, next(position for position in different if rank[position] == lowest): False}

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """Share of good completions, and mean score and length in characters of good and bad ones; None where there are none."""
        sides = {"desirable": "good", "undesirable": "bad"}
        numbers = {name: totals.number(f"{side}_score") for name, side in sides.items()}
        means = {
            f"{value}_mean_{name}": totals.mean(f"{side}_{value}") if numbers[name] else None
            for value in ("score", "characters")
            for name, side in sides.items()
        }
        return {"desirable_share": numbers["desirable"] / sum(numbers.values()), **means}
