"""Preference pairs from scored candidates: two completions of a prompt, the better one chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from align.config.selection import POLICY_OPTIONS, Combine, OnLengthFlip, PairPolicy
from align.records import Drop, Preference
from align.selection.candidate import Group, in_columns
from align.selection.policy import POLICIES, SEVERAL_PAIRS, NoPair
from align.selection.ranking import PromptCandidates, Ranked, Ranking, agreement, rank_candidates

RSO_BETA = 0.5
RSO_ACCEPT = 2
SIGMAS = 2.0
K = 2
MAX_LENGTH_RATIO = 1.25


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """Everything that decides which pairs a prompt gives; `build_pairs` says what the options mean.

    Raises:
        ValueError: if an option is out of bounds, or given where nothing reads it.
    """

    scorer: str | None = None
    scorers: Mapping[str, float] | None = None
    combine: Combine | None = None
    min_agreement: float | None = None
    policy: PairPolicy = "max_min"
    min_margin: float = 0.0
    max_margin: float | None = None
    sigmas: float | None = None
    k: int | None = None
    max_length_ratio: float | None = None
    rso_beta: float | None = None
    rso_accept: int | None = None
    length_penalty: float = 0.0
    on_length_flip: OnLengthFlip | None = None
    keep_truncated: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {self.policy!r}")
        for option, policy in POLICY_OPTIONS.items():
            if getattr(self, option) is not None and self.policy != policy:
                raise ValueError(f"{option} must be given with the policy {policy} only, not {self.policy}")
        if (self.scorer is None) == (self.scorers is None):
            raise ValueError("one of scorer and scorers must be given")
        if self.scorers is None and (self.combine is not None or self.min_agreement is not None):
            raise ValueError("combine and min_agreement must be given with scorers only")
        if self.on_length_flip is not None and not self.length_penalty:
            raise ValueError("on_length_flip must be given with a length_penalty only")
        if self.on_length_flip not in (None, "drop", "keep"):
            raise ValueError(f"on_length_flip must be drop or keep, not {self.on_length_flip!r}")
        for option, low, high in _BOUNDS:
            value = getattr(self, option)
            if value is not None and not low <= value < high:
                raise ValueError(f"{option} must be a number, at least {low:g}, not {value}")
        if self.policy == "margin_window" and (self.max_margin is None or not self.max_margin > self.min_margin):
            raise ValueError(f"max_margin must be given with margin_window and be above min_margin, not {self.max_margin}")
        if self.min_agreement is not None and self.min_agreement > 1:
            raise ValueError(f"min_agreement must be a share of the scorers' weight, at most 1, not {self.min_agreement}")
        self.ranking  # noqa: B018  checks what it is made of

    @cached_property
    def ranking(self) -> Ranking:
        """How candidates are ordered."""
        return Ranking(
            scorers=self.scorers if self.scorers is not None else {str(self.scorer): 1.0},
            combine=self.combine or "weighted_sum",
            length_penalty=self.length_penalty,
            keep_truncated=self.keep_truncated,
        )

    @property
    def num_sigmas(self) -> float:
        return SIGMAS if self.sigmas is None else self.sigmas

    @property
    def num_each(self) -> int:
        return K if self.k is None else self.k

    @property
    def length_ratio(self) -> float:
        return MAX_LENGTH_RATIO if self.max_length_ratio is None else self.max_length_ratio

    @property
    def temperature(self) -> float:
        return RSO_BETA if self.rso_beta is None else self.rso_beta

    @property
    def num_accepted(self) -> int:
        return RSO_ACCEPT if self.rso_accept is None else self.rso_accept


_LEAST_ABOVE_ZERO = math.ulp(0.0)
_BOUNDS = (
    ("min_margin", 0.0, math.inf),
    ("max_margin", _LEAST_ABOVE_ZERO, math.inf),
    ("sigmas", _LEAST_ABOVE_ZERO, math.inf),
    ("k", 1, math.inf),
    ("max_length_ratio", 1.0, math.inf),
    ("rso_beta", _LEAST_ABOVE_ZERO, math.inf),
    ("rso_accept", 2, math.inf),
    ("min_agreement", 0.0, math.inf),
)
"""Lowest value, and what a value must be below."""


class Pair(NamedTuple):
    """Two positions among a prompt's candidates, with what describes the pair."""

    id: str
    chosen: int
    rejected: int
    chosen_score: float
    """Combined score before the length penalty."""
    rejected_score: float
    flipped_by_length: bool = False
    """Without the length penalty the chosen one would not be the better one."""
    disagreed: bool = False
    """Some scorer prefers the rejected one."""


class PromptPairs(NamedTuple):
    """What one prompt gives. There is a drop for everything that was considered and left out, so one of the two is not empty."""

    pairs: list[Pair]
    drops: list[Drop]


def build_pairs(
    groups: Sequence[Group],
    *,
    scorer: str | None = None,
    scorers: Mapping[str, float] | None = None,
    combine: Combine | None = None,
    min_agreement: float | None = None,
    policy: PairPolicy = "max_min",
    min_margin: float = 0.0,
    max_margin: float | None = None,
    sigmas: float | None = None,
    k: int | None = None,
    max_length_ratio: float | None = None,
    rso_beta: float | None = None,
    rso_accept: int | None = None,
    length_penalty: float = 0.0,
    on_length_flip: OnLengthFlip | None = None,
    keep_truncated: bool = False,
    seed: int = 0,
) -> tuple[list[Preference], list[Drop]]:
    """Pairs by a policy; the chosen one is always ranked strictly higher, and the texts always differ.

    Candidates are ranked by their combined score after the length penalty (`Ranking`), which margins and policies are about; of
    equal ones the lower candidate_index is first. With one scorer and no penalty that is its score.

    `max_min`, `best_vs_second`, `max_random`, `best_vs_each`: the best against, among those with a lower score and another
    text, the worst, the best, one at random, each. `margin_window`: the pair with the largest margin between `min_margin` and
    `max_margin`. `mean_sigma`: the candidates nearest to mean ± `sigmas` population standard deviations. `top_k_bottom_k`: each
    of the `k` best against each of the `k` worst. `length_matched`: the pair with the largest margin whose longer text has at
    most `max_length_ratio` times the characters of the shorter. `rso`: two of those that statistical rejection sampling
    (`accept_candidates`) accepts. Equal texts count once, with their best score, except that `max_min` and `best_vs_second` may
    take the worse score of a text that was sampled twice. Draws come from a generator seeded with (`seed`, prompt_id), so that
    neither the order nor the presence of other prompts changes them.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        scorer: name of the score that ranks; higher is better. Or:
        scorers: weight by score name.
        combine: how several are combined, see `Ranking`; weighted_sum when not given.
        min_agreement: share of the scorers' weight, 0 to 1, that must strictly prefer the chosen one; 0 when not given.
        min_margin: a pair that is ranked closer than this is dropped; 0 or more.
        max_margin: for `margin_window`, which needs it.
        sigmas: for `mean_sigma`; above 0, 2 when not given.
        k: for `top_k_bottom_k`; 2 when not given.
        max_length_ratio: for `length_matched`; 1 or more, 1.25 when not given.
        rso_beta: for `rso`: temperature of acceptance in the unit of the scores, above 0; 0.5 when not given.
        rso_accept: for `rso`: how many are accepted before two are drawn, 2 or more; 2 when not given.
        length_penalty: subtracted from the combined score for every 100 characters before ranking.
        on_length_flip: a pair that the penalty turned round, or made of a tie, is dropped (when not given) or kept.
        keep_truncated: use candidates that were cut at the token limit.
    Returns:
        Pairs in the order of the prompts, with combined scores before the penalty, and drops. A policy that gives one pair per
        prompt gives it the id `prompt_id`, or one drop instead; `best_vs_each` and `top_k_bottom_k` give pairs and drops with
        the id `prompt_id/i-j`, the two candidate indices. Reasons: truncated, nonfinite_score, too_few_candidates (fewer than
        two remain), identical (no different text), tie, margin_below_min, outside_margin_window, same_candidate,
        no_length_match, flipped_by_length, disagreement.
    Raises:
        StageError: if a candidate has no score by a scorer.
        ValueError: if an option is out of bounds or given where nothing reads it, or a group does not hold exactly one prompt.
    """
    rule = PairRule(
        scorer=scorer,
        scorers=scorers,
        combine=combine,
        min_agreement=min_agreement,
        policy=policy,
        min_margin=min_margin,
        max_margin=max_margin,
        sigmas=sigmas,
        k=k,
        max_length_ratio=max_length_ratio,
        rso_beta=rso_beta,
        rso_accept=rso_accept,
        length_penalty=length_penalty,
        on_length_flip=on_length_flip,
        keep_truncated=keep_truncated,
        seed=seed,
    )
    rows: list[Preference] = []
    drops: list[Drop] = []
    for group in groups:
        candidates = in_columns(group, list(rule.ranking.scorers))
        given = pairs_of(candidates, rule)
        prompt = group[0].prompt
        rows.extend(
            Preference(
                id=pair.id,
                prompt=prompt,
                chosen=candidates.texts[pair.chosen],
                rejected=candidates.texts[pair.rejected],
                chosen_score=pair.chosen_score,
                rejected_score=pair.rejected_score,
            )
            for pair in given.pairs
        )
        drops.extend(given.drops)
    return rows, drops


def pairs_of(candidates: PromptCandidates, rule: PairRule) -> PromptPairs:
    """The pairs and drops of one prompt."""
    ranked = rank_candidates(candidates, rule.ranking)
    if len(ranked.order) < 2:
        return PromptPairs([], [ranked.too_few()])
    found = _no_difference(ranked) or POLICIES[rule.policy](ranked, rule)
    if isinstance(found, NoPair):
        return PromptPairs([], [Drop(id=candidates.prompt_id, drop_reason=found.drop_reason, detail=found.detail)])
    pairs, drops = [], []
    for chosen, rejected in found:
        row_id = candidates.prompt_id
        if rule.policy in SEVERAL_PAIRS:
            row_id = f"{row_id}/{candidates.indices[chosen]}-{candidates.indices[rejected]}"
        made = _checked(ranked, rule, row_id, chosen, rejected)
        if isinstance(made, Drop):
            drops.append(made)
        else:
            pairs.append(made)
    return PromptPairs(pairs, drops)


def _no_difference(ranked: Ranked) -> NoPair | None:
    """Why no policy finds a pair: all texts are equal, or all scores."""
    best, texts, many = ranked.order[0], ranked.candidates.texts, len(ranked.order)
    if all(texts[position] == texts[best] for position in ranked.order):
        return NoPair("identical", f"all {many} candidates are the same text")
    if ranked.rank[ranked.order[-1]] == ranked.rank[best]:
        return NoPair("tie", f"all {many} candidates score {ranked.rank[best]:g}")
    return None


def _checked(ranked: Ranked, rule: PairRule, row_id: str, chosen: int, rejected: int) -> Pair | Drop:
    """The pair, or the drop where its margin, a flip by length or a disagreement speaks against it."""
    high, low = ranked.rank[chosen], ranked.rank[rejected]
    margin = high - low
    if not margin > 0:
        return Drop(id=row_id, drop_reason="tie", detail=f"the two score {high:g}")
    if margin < rule.min_margin:
        detail = f"{high:g} - {low:g} = {margin:g}, min_margin {rule.min_margin:g}"
        return Drop(id=row_id, drop_reason="margin_below_min", detail=detail)
    raw_high, raw_low = ranked.combined[chosen], ranked.combined[rejected]
    flipped = raw_high <= raw_low
    if flipped and rule.on_length_flip != "keep":
        detail = f"{raw_high:g} and {raw_low:g} before the length penalty, {high:g} and {low:g} after it"
        return Drop(id=row_id, drop_reason="flipped_by_length", detail=detail)
    disagreed = False
    if rule.scorers is not None:
        share, disagreed = agreement(ranked.candidates, list(rule.scorers.values()), chosen, rejected)
        if rule.min_agreement is not None and share < rule.min_agreement:
            detail = f"{share:g} of the weight prefers the chosen one, min_agreement {rule.min_agreement:g}"
            return Drop(id=row_id, drop_reason="disagreement", detail=detail)
    return Pair(row_id, chosen, rejected, raw_high, raw_low, flipped, disagreed)
