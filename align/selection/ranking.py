"""Ranks the candidates of a prompt: drops unusable ones, combines scorers, subtracts the length penalty."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from align.config.selection import Combine
from align.records import Drop
from align.selection.candidate import PromptCandidates

CHARACTERS_PER_PENALTY = 100
_CAUSES = {
    "truncated": "cut at the token limit",
    "nonfinite_score": "without a finite score",
    "too_few_candidates": "empty",
}


@dataclass(frozen=True)
class RankingRule:
    """How candidates are put in order.

    A candidate's combined score is, by `combine`:
    `weighted_sum` the sum of weight times score; `z_scores` the same of standard scores, (score - mean) / population standard
    deviation over the prompt's usable candidates, 0 where that deviation is 0; `vote` the share of the other usable candidates
    that it beats, a tie being half, averaged over the scorers by their weights (between 0 and 1; 0 when it is alone).
    It is ranked by its combined score minus `length_penalty` for every 100 characters.
    """

    scorers: Mapping[str, float]
    """Weight by scorer, each above 0. Higher is better for every scorer."""
    combine: Combine = "weighted_sum"
    length_penalty: float = 0.0
    """In the unit of the combined score, per 100 characters; 0 or more."""
    keep_truncated: bool = False
    """Use candidates that were cut at the token limit."""


@dataclass(frozen=True)
class Ranked:
    """The usable candidates of a prompt in order. Lists are by position in `candidates`."""

    candidates: PromptCandidates
    combined: list[float]
    """Combined score; undefined for unusable candidates."""
    rank: list[float]
    """The number that ranks: the combined score minus the length penalty."""
    order: list[int]
    """Positions of the usable candidates, best first; among equal ones, the lower candidate_index first."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Number of unusable candidates by reason."""

    def too_few(self) -> Drop:
        """The drop of a prompt with too few usable candidates; its reason is the one that removed the most."""
        most = max(self.removed, key=lambda name: self.removed[name]) if any(self.removed.values()) else "too_few_candidates"
        parts = [f"{count} {_CAUSES[name]}" for name, count in self.removed.items() if count]
        detail = f"{len(self.order)} of {len(self.candidates.indices)} candidates can be used"
        detail += f" ({', '.join(parts)})" if parts else ""
        return Drop(id=self.candidates.prompt_id, drop_reason=most, detail=detail)

    def different_texts(self, positions: Sequence[int]) -> list[int]:
        """The first of every text, in the order given."""
        first: dict[str, int] = {}
        for position in positions:
            first.setdefault(self.candidates.texts[position], position)
        return list(first.values())


def rank_candidates(candidates: PromptCandidates, ranking: RankingRule) -> Ranked:
    """Order a prompt's candidates by their score.

    It drops candidates without a finite score by some scorer, empty ones (there is nothing to imitate), and, unless
    `keep_truncated`, those cut at the token limit.
    """
    truncated, nonfinite, empty = 0, 0, 0
    # A candidate that one scorer could not score is left out for all: its combined score would not compare with the others'.
    lacking = {
        position
        for scores in candidates.scores
        for position, score in enumerate(scores)
        if score is None or not math.isfinite(score)
    }
    usable = []
    for position, (text, cut) in enumerate(zip(candidates.texts, candidates.truncated, strict=True)):
        if cut and not ranking.keep_truncated:
            truncated += 1
        elif position in lacking:
            nonfinite += 1
        elif not text or text.isspace():
            empty += 1
        else:
            usable.append(position)
    combined = rank = _combined(candidates, ranking, usable)
    if ranking.length_penalty:
        # A new list: `combined` must keep the scores before the penalty, which the pairs report.
        price = ranking.length_penalty / CHARACTERS_PER_PENALTY
        rank = [math.nan] * len(combined)
        for position in usable:
            rank[position] = combined[position] - price * len(candidates.texts[position])
    order = usable
    # The very list of the scores: nothing was computed, and `lacking` has found all numbers that are not finite.
    if rank is not candidates.scores[0]:
        # Finite scores of about 1e308 may add up to an infinity, which cannot rank.
        order = [position for position in usable if -math.inf < rank[position] < math.inf]
        nonfinite += len(usable) - len(order)
    order.sort(key=rank.__getitem__, reverse=True)  # a reversed sort keeps the order of equal ones
    removed = {"truncated": truncated, "nonfinite_score": nonfinite, "too_few_candidates": empty}
    return Ranked(candidates, combined, rank, order, removed)


def _combined(candidates: PromptCandidates, ranking: RankingRule, usable: Sequence[int]) -> list[float]:
    """Combined score by position."""
    weights = list(ranking.scorers.values())
    if weights == [1.0] and ranking.combine == "weighted_sum":
        # A single scorer's scores are kept to the bit: a sum would turn -0.0 into 0.0.
        return candidates.scores[0]  # type: ignore[return-value]
    columns = [[scores[position] for position in usable] for scores in candidates.scores]
    combined = [math.nan] * len(candidates.texts)
    for position, value in zip(usable, _COMBINE[ranking.combine](columns, weights), strict=True):  # type: ignore[arg-type]
        combined[position] = value
    return combined


def agreement(candidates: PromptCandidates, weights: Sequence[float], chosen: int, rejected: int) -> tuple[float, bool]:
    """Share of the scorers' weight that strictly prefers `chosen` to `rejected`, and whether any scorer prefers `rejected`."""
    share, against = 0.0, False
    for weight, scores in zip(weights, candidates.scores, strict=True):
        first, second = scores[chosen], scores[rejected]
        assert first is not None  # both were ranked
        assert second is not None
        share += weight if first > second else 0.0
        against = against or first < second
    return share / sum(weights), against


def mean_and_deviation(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation of finite numbers; numbers of 1e308 do not overflow."""
    # Squares of scores near 1e308 would overflow; of scaled ones they are at most 1.
    largest = max(abs(score) for score in scores) or 1.0
    scaled = [score / largest for score in scores]
    mean = math.fsum(scaled) / len(scaled)
    return mean * largest, math.sqrt(math.fsum((score - mean) ** 2 for score in scaled) / len(scaled)) * largest


def _weighted_sum(columns: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    return [sum(weight * score for weight, score in zip(weights, row, strict=True)) for row in zip(*columns, strict=True)]


def _z_scores(columns: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    return _weighted_sum([_standardised(column) for column in columns], weights)


def _standardised(column: Sequence[float]) -> list[float]:
    if not column or min(column) == max(column):
        return [0.0] * len(column)
    largest = max(abs(score) for score in column)
    scaled = [score / largest for score in column]
    mean, deviation = mean_and_deviation(scaled)
    return [(score - mean) / deviation if deviation else 0.0 for score in scaled]


def _vote(columns: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    whole = sum(weights)
    return _weighted_sum([_won_share(column) for column in columns], [weight / whole for weight in weights])


def _won_share(column: Sequence[float]) -> list[float]:
    """For each score, the share of the other scores that it beats; a tie counts half."""
    # bisect_left counts those below; bisect_right also the equal ones and the score itself, hence the - 1. Their sum is twice
    # (beaten + ties / 2). Sorting takes n log n comparisons instead of n squared.
    rising = sorted(column)
    others = max(len(column) - 1, 1)
    return [(bisect_left(rising, score) + bisect_right(rising, score) - 1) / (2 * others) for score in column]


_COMBINE = {"weighted_sum": _weighted_sum, "z_scores": _z_scores, "vote": _vote}
