"""Best of n against a count of all subsets, done by hand and by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from align.report.best_of import best_of_kl_bound, best_of_probabilities, expectation
from align.report.statistics import prompt_means

NAN = math.nan


def enumerated(scores: list[float], values: list[float], n: int) -> float:
    """Mean value of the best candidate over all subsets of n; equal scores share one; subsets without a score do not count."""
    means = []
    for subset in itertools.combinations(range(len(scores)), n):
        finite = [index for index in subset if not math.isnan(scores[index])]
        if finite:
            top = max(scores[index] for index in finite)
            winners = [values[index] for index in finite if scores[index] == top]
            means.append(sum(winners) / len(winners))
    return sum(means) / len(means)


def test_best_of_two_of_four_by_hand() -> None:
    # Six pairs. The best is in three of them, the second is the best of two, the third of one, the worst of none.
    (chances,) = best_of_probabilities(np.array([[10.0, 40.0, 20.0, 30.0]]), 2)
    assert chances == pytest.approx([0, 3 / 6, 1 / 6, 2 / 6])
    # (3 · 40 + 2 · 30 + 1 · 20) / 6
    assert expectation(np.array([[10.0, 40.0, 20.0, 30.0]]), chances[None]) == pytest.approx([200 / 6])


def test_one_is_the_mean_and_all_is_the_maximum() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 16))
    # To the last digit: a difference to the baseline of 1e-17 on every prompt would look like a sure one.
    assert expectation(scores, best_of_probabilities(scores, 1)).tolist() == prompt_means(scores).tolist()
    tied = scores.round()
    assert expectation(scores, best_of_probabilities(tied, 1)).tolist() == prompt_means(scores).tolist()
    assert expectation(scores, best_of_probabilities(scores, 16)) == pytest.approx(scores.max(axis=1), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_every_subset_is_counted_once_for_the_scorer_that_chooses_and_for_another(n: int) -> None:
    random = np.random.default_rng(n)
    scores, other = random.normal(size=(5, 7)), random.normal(size=(5, 7))
    chances = best_of_probabilities(scores, n)
    for values in (scores, other):
        expected = [enumerated(list(row), list(value), n) for row, value in zip(scores, values, strict=True)]
        assert expectation(values, chances) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_candidates_without_a_score_are_never_chosen(n: int) -> None:
    scores, other = [2.0, NAN, 1.0, NAN, 3.0], [10.0, 1e6, 30.0, 1e6, 50.0]
    chances = best_of_probabilities(np.array([scores]), n)
    assert chances[0, [1, 3]].tolist() == [0.0, 0.0]
    assert chances.sum() == pytest.approx(1.0)
    assert expectation(np.array([other]), chances) == pytest.approx([enumerated(scores, other, n)])


def test_equal_scores_share_so_that_their_order_does_not_matter() -> None:
    (chances,) = best_of_probabilities(np.array([[1.0, 5.0, 5.0, 0.0]]), 2)
    # Pairs: both fives (1, shared), a five with another (2 each), 1 with 0 (1).
    assert chances == pytest.approx([1 / 6, 2.5 / 6, 2.5 / 6, 0])
    assert best_of_probabilities(np.ones((1, 6)), 4) == pytest.approx(np.full((1, 6), 1 / 6))


def test_a_prompt_without_any_score_has_no_expectation() -> None:
    chances = best_of_probabilities(np.array([[NAN, NAN], [1.0, 2.0]]), 2)
    assert chances.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    means = expectation(np.array([[1.0, 1.0], [NAN, 7.0]]), chances)
    assert math.isnan(means[0])
    assert means[1] == 7.0


@pytest.mark.parametrize("n", [0, 5])
def test_n_is_between_one_and_the_number_of_candidates(n: int) -> None:
    with pytest.raises(ValueError, match="1 ≤ n ≤ 4"):
        best_of_probabilities(np.zeros((1, 4)), n)


def test_the_kl_bound_by_hand_and_as_a_bound() -> None:
    assert best_of_kl_bound(1) == 0.0
    assert best_of_kl_bound(2) == pytest.approx(0.693147 - 0.5, abs=1e-6)
    assert best_of_kl_bound(16) == pytest.approx(2.772589 - 0.9375, abs=1e-6)
    # A model with m equally likely completions of different scores: the best of n independent draws is the k-th from below with
    # probability (k^n − (k − 1)^n) / m^n, so its KL to the model can be summed, and must not exceed the bound.
    for m, n in ((3, 2), (10, 4), (1000, 16)):
        chances = [(k**n - (k - 1) ** n) / m**n for k in range(1, m + 1)]
        kl = sum(chance * math.log(chance * m) for chance in chances)
        assert kl <= best_of_kl_bound(n)
    assert kl == pytest.approx(best_of_kl_bound(n), abs=0.02)  # of many completions it is nearly reached
