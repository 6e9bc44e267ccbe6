"""Pair policies: which two candidates of a prompt make a pair. Each is a function; the table at the end lists them.

A policy gets a prompt whose candidates differ in text and in score. It returns positions (chosen, rejected), or the reason
why there is no pair. The chosen candidate never ranks lower. "Different texts" are the first of every text in the
ranking: equal texts count once, with their best score.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from align.config.selection import PairPolicy
from align.runtime.seed import derive_seed
from align.selection.pair_rule import PairRule
from align.selection.ranking import Ranked, mean_and_deviation
from align.selection.rejection import accept_candidates

RSO_BETA = 0.5
RSO_ACCEPT = 2
SIGMAS = 2.0
K = 2
MAX_LENGTH_RATIO = 1.25


class NoPair(NamedTuple):
    """Why a prompt gives no pair."""

    drop_reason: str
    detail: str


Positions = list[tuple[int, int]]


def _max_min(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """The best against the worst; among equally bad ones, the one with the lowest candidate_index."""
    others = _worse_than_best(ranked)
    if not others:
        return _same_as_best(ranked)
    # Equal ranks are in order of candidate_index, so the last one itself would be the highest index.
    lowest = ranked.rank[others[-1]]
    return [(ranked.order[0], next(position for position in others if ranked.rank[position] == lowest))]


def _best_vs_second(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """The best against the next best that has a lower score and another text."""
    others = _worse_than_best(ranked)
    return [(ranked.order[0], others[0])] if others else _same_as_best(ranked)


def _max_random(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """The best against a random worse text. Each different text is equally likely, however often it was sampled."""
    others = _worse_than_best(ranked)
    if not others:
        return _same_as_best(ranked)
    return [(ranked.order[0], _generator(ranked, seed).choice(ranked.different_texts(others)))]


def _best_vs_each(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """The best against every other different text."""
    best, *others = ranked.different_texts(ranked.order)
    return [(best, other) for other in others]


def _margin_window(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """The pair of different texts with the largest margin of at most max_margin; min_margin holds as for every policy."""
    assert rule.max_margin is not None  # PairRule requires it with this policy
    margins = [entry for entry in _all_margins(ranked) if entry[0] > 0]
    if not margins:
        return NoPair("tie", f"all different texts score {ranked.rank[ranked.order[0]]:g}")
    inside = [entry for entry in margins if rule.min_margin <= entry[0] <= rule.max_margin]
    if inside:
        return _largest(inside)
    least, most = min(margins)[0], max(margins)[0]
    detail = f"margins from {least:g} to {most:g}, none from {rule.min_margin:g} to {rule.max_margin:g}"
    return NoPair("outside_margin_window", detail)


def _mean_sigma(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """The different texts nearest to mean + sigmas * deviation and to mean - sigmas * deviation.

    Among equally near ones, the one with the lowest candidate_index.
    """
    # Sorted by position, because `min` below takes the first of equally near ones.
    different = sorted(ranked.different_texts(ranked.order))
    scores = [ranked.rank[position] for position in different]
    mean, deviation = mean_and_deviation(scores)
    sigmas = rule.sigmas or SIGMAS
    targets = [mean + sigmas * deviation, mean - sigmas * deviation]
    chosen, rejected = (
        min(different, key=lambda position, target=target: abs(ranked.rank[position] - target))  # type: ignore[misc]
        for target in targets
    )
    if chosen == rejected:
        detail = f"the candidate that scores {ranked.rank[chosen]:g} is nearest to both {targets[0]:g} and {targets[1]:g}"
        return NoPair("same_candidate", detail)
    return [(chosen, rejected)]


def _top_k_bottom_k(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """Each of the k best against each of the k worst different texts; with fewer than 2k of them some are in both."""
    different = ranked.different_texts(ranked.order)
    k = rule.k or K
    bottom = len(different) - k
    # `place + 1` keeps a text from being paired with itself or with a better one where the two ends overlap.
    return [(first, second) for place, first in enumerate(different[:k]) for second in different[max(bottom, place + 1, 0) :]]


def _length_matched(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """The pair with the largest margin among those of different texts whose lengths are near each other."""
    most, shortest_ratio = rule.max_length_ratio or MAX_LENGTH_RATIO, math.inf
    matched = []
    for margin, first, second in _all_margins(ranked):
        lengths = len(ranked.candidates.texts[first]), len(ranked.candidates.texts[second])
        # No division by 0: the ranking leaves out empty texts.
        ratio = max(lengths) / min(lengths)
        shortest_ratio = min(shortest_ratio, ratio)
        if ratio <= most:
            matched.append((margin, first, second))
    if not matched:
        detail = f"the nearest lengths differ by the ratio {shortest_ratio:.3g}, max_length_ratio {most:g}"
        return NoPair("no_length_match", detail)
    return _largest(matched)


def _rejection_sampled(ranked: Ranked, rule: PairRule, seed: int) -> Positions | NoPair:
    """Two of the candidates that statistical rejection sampling accepts, at random, the higher score first."""
    # In sampling order, as in the paper: the loop stops once enough are accepted, so the order matters.
    different = sorted(ranked.different_texts(ranked.order))
    generator = _generator(ranked, seed)
    scores = [ranked.rank[position] for position in different]
    beta, count = rule.rso_beta or RSO_BETA, rule.rso_accept or RSO_ACCEPT
    # At least two: there are two different texts, rso_accept is 2 or more, and every pass accepts the highest.
    accepted = accept_candidates(scores, beta=beta, count=count, generator=generator)
    first, second = (different[index] for index in generator.sample(accepted, 2))
    if ranked.rank[first] == ranked.rank[second]:
        return NoPair("tie", f"the two that were drawn score {ranked.rank[first]:g}")
    return [(first, second) if ranked.rank[first] > ranked.rank[second] else (second, first)]


def _worse_than_best(ranked: Ranked) -> list[int]:
    """Positions of the candidates whose score is lower than the best one's and whose text differs from it, best first."""
    best = ranked.order[0]
    highest, text, rank, texts = ranked.rank[best], ranked.candidates.texts[best], ranked.rank, ranked.candidates.texts
    return [position for position in ranked.order if rank[position] < highest and texts[position] != text]


def _same_as_best(ranked: Ranked) -> NoPair:
    best = ranked.rank[ranked.order[0]]
    return NoPair("identical", f"every candidate that scores below {best:g} is the same text as the best")


def _all_margins(ranked: Ranked) -> Iterator[tuple[float, int, int]]:
    """(margin, chosen, rejected) for every two different texts; `chosen` ranks at least as high."""
    different = ranked.different_texts(ranked.order)
    for place, first in enumerate(different):
        for second in different[place + 1 :]:
            yield ranked.rank[first] - ranked.rank[second], first, second


def _largest(entries: Sequence[tuple[float, int, int]]) -> Positions:
    """The pair with the largest margin; among equal margins, the lowest candidate_index of chosen, then of rejected."""
    _, chosen, rejected = min(entries, key=lambda entry: (-entry[0], entry[1], entry[2]))
    return [(chosen, rejected)]


def _generator(ranked: Ranked, seed: int) -> random.Random:
    return random.Random(derive_seed(seed, "pairs", ranked.candidates.prompt_id))


POLICIES: Mapping[PairPolicy, Callable[[Ranked, PairRule, int], Positions | NoPair]] = {
    "max_min": _max_min,
    "max_random": _max_random,
    "best_vs_each": _best_vs_each,
    "best_vs_second": _best_vs_second,
    "margin_window": _margin_window,
    "mean_sigma": _mean_sigma,
    "top_k_bottom_k": _top_k_bottom_k,
    "length_matched": _length_matched,
    "rso": _rejection_sampled,
}
SEVERAL_PAIRS = frozenset({"best_vs_each", "top_k_bottom_k"})
"""Policies that may give several pairs of one prompt; each pair has the id `prompt_id/i-j`, and so has its drop."""
