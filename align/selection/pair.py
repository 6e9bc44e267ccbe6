"""Preference pairs from scored candidates: two completions of a prompt, the better one chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from align.records import Drop, Preference
from align.selection.candidate import Group, PromptCandidates
from align.selection.pair_rule import PairRule
from align.selection.policy import POLICIES, SEVERAL_PAIRS, NoPair
from align.selection.ranking import Ranked, agreement, rank_candidates
from align.selection.selector import SelectionTally, Totals, messages_of, rule_of, select_from_groups

FLIPPED = "flipped_by_length"
DISAGREED = "disagreed"


def build_pairs(groups: Iterable[Group], *, seed: int = 0, **settings: Any) -> tuple[list[Preference], list[Drop]]:
    """Pairs by a policy; the chosen one is always ranked strictly higher, and the texts always differ.

    Candidates are ranked by their combined score minus the length penalty (`RankingRule`); policies and margins use that number.
    Among equal candidates the lower candidate_index comes first. With one scorer and no penalty the number is its score.
    docs/pairs.md has the formula of every policy.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        seed: draws come from a generator seeded with (`seed`, prompt_id), so that neither the order nor the presence of other
            prompts changes them.
        settings: the fields of `PairRule`, such as `scorer="rm", policy="max_min"`; `scorer` or `scorers` must be given.
    Returns:
        Pairs in the order of the prompts, with combined scores before the penalty, and drops. A policy that gives one pair per
        prompt gives it the id `prompt_id`, or one drop instead; `best_vs_each` and `top_k_bottom_k` give pairs and drops with
        the id `prompt_id/i-j`, the two candidate indices. Reasons: truncated, nonfinite_score, too_few_candidates (fewer than
        two remain), identical (no different text), tie, margin_below_min, outside_margin_window, same_candidate,
        no_length_match, flipped_by_length, disagreement.
    Raises:
        StageError: if a candidate has no score by a scorer.
        ValueError: if a setting is unknown, out of bounds or given where nothing reads it, or a group does not hold exactly one
            prompt.
    """
    return select_from_groups(groups, PairSelector(rule_of(PairRule, settings), seed))


@dataclass(frozen=True)
class PairSelector:
    """Preference pairs by a rule."""

    rule: PairRule
    seed: int = 0
    """Seed of the policies that draw at random."""

    @property
    def scorers(self) -> Sequence[str]:
        return list(self.rule.ranking.scorers)

    def select(self, candidates: PromptCandidates, tally: SelectionTally) -> tuple[list[Preference], list[Drop]]:
        """The pairs of one prompt, and a drop for every rejected pair; at least one list is not empty."""
        ranked = rank_candidates(candidates, self.rule.ranking)
        if len(ranked.order) < 2:
            return [], [ranked.too_few()]
        # Checked here once: the policies rely on two different texts and two different scores.
        result = _no_difference(ranked) or POLICIES[self.rule.policy](ranked, self.rule, self.seed)
        if isinstance(result, NoPair):
            return [], [Drop(id=candidates.prompt_id, drop_reason=result.drop_reason, detail=result.detail)]
        made = [self._pair(ranked, chosen, rejected, tally) for chosen, rejected in result]
        return [row for row in made if isinstance(row, Preference)], [row for row in made if isinstance(row, Drop)]

    def _pair(self, ranked: Ranked, chosen: int, rejected: int, tally: SelectionTally) -> Preference | Drop:
        """The pair, or a drop if its margin is too small, length alone decides it, or the scorers disagree."""
        rule, candidates = self.rule, ranked.candidates
        row_id = candidates.prompt_id
        if rule.policy in SEVERAL_PAIRS:
            row_id += f"/{candidates.indices[chosen]}-{candidates.indices[rejected]}"
        high, low = ranked.rank[chosen], ranked.rank[rejected]
        margin = high - low
        # best_vs_each, top_k_bottom_k and length_matched can pair equal scores.
        if not margin > 0:
            return Drop(id=row_id, drop_reason="tie", detail=f"the two score {high:g}")
        if margin < rule.min_margin:
            detail = f"{high:g} - {low:g} = {margin:g}, min_margin {rule.min_margin:g}"
            return Drop(id=row_id, drop_reason="margin_below_min", detail=detail)
        raw_high, raw_low = ranked.combined[chosen], ranked.combined[rejected]
        # The penalised order is strict (above), so the penalty alone made this one.
        flipped = raw_high <= raw_low
        if flipped and rule.on_length_flip != "keep":
            detail = f"{raw_high:g} and {raw_low:g} before the length penalty, {high:g} and {low:g} after it"
            return Drop(id=row_id, drop_reason="flipped_by_length", detail=detail)
        disagreed = False
        if rule.scorers is not None:
            share, disagreed = agreement(candidates, list(rule.scorers.values()), chosen, rejected)
            if rule.min_agreement is not None and share < rule.min_agreement:
                detail = f"{share:g} of the weight prefers the chosen one, min_agreement {rule.min_agreement:g}"
                return Drop(id=row_id, drop_reason="disagreement", detail=detail)
        better, worse = candidates.texts[chosen], candidates.texts[rejected]
        # Counted after every possible drop: the metrics describe the pairs that training will see.
        tally.values["margin"].append(raw_high - raw_low)
        tally.values["chosen_characters"].append(len(better))
        tally.values["rejected_characters"].append(len(worse))
        tally.values["longer"].append(1.0 if len(better) > len(worse) else 0.5 if len(better) == len(worse) else 0.0)
        tally.counts[FLIPPED] += flipped
        tally.counts[DISAGREED] += disagreed
        return Preference(
            id=row_id,
            prompt=messages_of(candidates),
            chosen=better,
            rejected=worse,
            chosen_score=raw_high,
            rejected_score=raw_low,
        )

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """Margins, lengths in characters, and the share of longer chosen sides: far from 0.5, training learns length."""
        metrics = {
            "margin_mean": totals.mean("margin"),
            "margin_min": totals.least("margin"),
            "chosen_characters_mean": totals.mean("chosen_characters"),
            "rejected_characters_mean": totals.mean("rejected_characters"),
            "longer_chosen_share": totals.mean("longer"),
        }
        if self.rule.length_penalty:
            metrics["flipped_by_length"] = totals.counts[FLIPPED]
        if self.rule.scorers is not None:
            # Never 0: a stage without a single pair has failed before.
            metrics["disagreement_share"] = totals.counts[DISAGREED] / totals.number("margin")
        return metrics


def _no_difference(ranked: Ranked) -> NoPair | None:
    """The reason if no policy can find a pair, because all texts or all scores are equal."""
    best, texts, many = ranked.order[0], ranked.candidates.texts, len(ranked.order)
    if all(texts[position] == texts[best] for position in ranked.order):
        return NoPair("identical", f"all {many} candidates are the same text")
    if ranked.rank[ranked.order[-1]] == ranked.rank[best]:
        return NoPair("tie", f"all {many} candidates score {ranked.rank[best]:g}")
    return None
