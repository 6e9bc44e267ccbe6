"""Statistical rejection sampling against its exact distribution: a case worked by hand, and all outcomes enumerated."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from align.selection import accept_candidates, build_pairs
from align.testing import scored_candidate

DRAWS = 40_000


def exact_distribution(scores: Sequence[float], beta: float, count: int) -> dict[frozenset[int], float]:
    """Probability of every set of accepted candidates, by going through all outcomes of every pass."""
    result: Counter[frozenset[int]] = Counter()

    def one_pass(remaining: tuple[int, ...], accepted: frozenset[int], weight: float) -> None:
        if not remaining or len(accepted) == count:
            result[accepted] += weight  # type: ignore[assignment]
            return
        highest = max(scores[index] for index in remaining)
        chances = [math.exp((scores[index] - highest) / beta) for index in remaining]
        for outcome in itertools.product((False, True), repeat=len(remaining)):
            probability = math.prod(chance if yes else 1 - chance for chance, yes in zip(chances, outcome, strict=True))
            if probability == 0:
                continue
            # Who comes after the last that is needed is not asked; summing over its outcomes makes it so.
            taken = [index for index, yes in zip(remaining, outcome, strict=True) if yes][: count - len(accepted)]
            one_pass(tuple(index for index in remaining if index not in taken), accepted | set(taken), weight * probability)

    one_pass(tuple(range(len(scores))), frozenset(), 1.0)
    return dict(result)


def drawn_distribution(scores: Sequence[float], beta: float, count: int) -> Counter[frozenset[int]]:
    generator = random.Random(3)
    draws = (accept_candidates(scores, beta=beta, count=count, generator=generator) for _ in range(DRAWS))
    return Counter(frozenset(draw) for draw in draws)


def assert_drawn_from(counts: Counter[frozenset[int]], exact: dict[frozenset[int], float]) -> None:
    """Every frequency is within five standard errors."""
    assert set(counts) <= set(exact)
    for outcome, probability in exact.items():
        error = math.sqrt(probability * (1 - probability) / DRAWS)
        assert abs(counts[outcome] / DRAWS - probability) < 5 * error + 1e-12, outcome


def test_three_candidates_by_hand() -> None:
    """Scores 0, 0, ln 2 and beta 1, one to be accepted: chances 1/2, 1/2 and 1 in this order.

    The first is accepted with 1/2; else the second with 1/2, so 1/4; else the third, 1/4.
    """
    exact = {frozenset({0}): 0.5, frozenset({1}): 0.25, frozenset({2}): 0.25}
    assert exact_distribution([0, 0, math.log(2)], 1, 1) == pytest.approx(exact)
    assert_drawn_from(drawn_distribution([0, 0, math.log(2)], 1, 1), exact)


def test_the_highest_of_those_that_remain_counts_by_hand() -> None:
    """Scores ln 4, ln 2, 0 and beta 1, two to be accepted: chances 1, 1/2, 1/4 in the first pass.

    Second accepted: 1/2. Else third: 1/2 * 1/4 = 1/8. Else (3/8) a pass over the two with chances 1 and 1/2: the second.
    Had the highest of all still counted, the second would have been accepted with 1/2 there, and the third come through.
    """
    exact = {frozenset({0, 1}): 7 / 8, frozenset({0, 2}): 1 / 8}
    assert exact_distribution([math.log(4), math.log(2), 0], 1, 2) == pytest.approx(exact)
    assert_drawn_from(drawn_distribution([math.log(4), math.log(2), 0], 1, 2), exact)


@pytest.mark.parametrize(("beta", "count"), [(0.5, 1), (0.5, 2), (0.5, 3), (2.0, 2), (10.0, 3)])
def test_four_candidates_by_enumeration(beta: float, count: int) -> None:
    scores = [0.1, -0.4, 0.6, 0.3]
    exact = exact_distribution(scores, beta, count)
    assert sum(exact.values()) == pytest.approx(1)
    assert_drawn_from(drawn_distribution(scores, beta, count), exact)


def test_a_small_beta_takes_the_best_and_a_large_one_any() -> None:
    scores = [0.0, 3.0, 2.0, 1.0]
    assert accept_candidates(scores, beta=1e-9, count=2, generator=random.Random(1)) == [1, 2]
    assert accept_candidates(scores, beta=1e-300, count=4, generator=random.Random(1)) == [1, 2, 3, 0]
    assert accept_candidates(scores, beta=1e12, count=2, generator=random.Random(1)) == [0, 1]


def test_with_too_few_all_are_accepted_and_without_any_none() -> None:
    assert sorted(accept_candidates([1.0, -500.0], beta=0.1, count=5, generator=random.Random(1))) == [0, 1]
    assert accept_candidates([], beta=0.1, count=5, generator=random.Random(1)) == []


@pytest.mark.parametrize(("beta", "count"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)])
def test_options_that_make_no_sense(beta: float, count: int) -> None:
    with pytest.raises(ValueError, match="must"):
        accept_candidates([1.0], beta=beta, count=count, generator=random.Random(1))


def test_pairs_are_two_of_the_accepted() -> None:
    """Over many prompts the pairs are as frequent as the sets of two that are accepted, and the chosen one scores higher."""
    scores, texts = [0.1, -0.4, 0.6, 0.3], "abcd"
    groups = [
        [
            scored_candidate({"rm": score}, text, index, prompt_id=f"p{number}")
            for index, (text, score) in enumerate(zip(texts, scores, strict=True))
        ]
        for number in range(4000)
    ]
    pairs, drops = build_pairs(groups, scorer="rm", policy="rso", rso_beta=0.5)
    assert (len(pairs), drops) == (4000, [])
    assert all((pair.chosen_score or 0) > (pair.rejected_score or 0) for pair in pairs)
    found = Counter(frozenset(texts.index(text) for text in (pair.chosen, pair.rejected)) for pair in pairs)
    for outcome, probability in exact_distribution(scores, 0.5, 2).items():
        assert abs(found[outcome] / 4000 - probability) < 5 * math.sqrt(probability * (1 - probability) / 4000)
