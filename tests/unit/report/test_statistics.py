"""The statistics against arithmetic done by hand, scipy, and simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy.stats import bootstrap

from align.report.statistics import (
    distinct_n,
    holm,
    paired_bootstrap,
    prompt_means,
    seeded_bootstrap,
    standardized_difference,
    win_rate,
)

NAN = math.nan


def test_the_interval_is_scipys_bca_interval_with_our_seed() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    ours = paired_bootstrap(values, seed=5, resamples=2000)
    theirs = bootstrap((values,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(5)).confidence_interval
    assert ours.mean == pytest.approx(values.mean(), abs=1e-15)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_large_samples_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, size=4000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(4000)
    interval = paired_bootstrap(values, seed=1, resamples=4000)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_covers_the_true_mean_95_percent_of_the_time() -> None:
    # 400 studies of 50 prompts whose differences are skewed (log-normal, true mean 1). The share that covers has a standard
    # error of about 1.1 points; a one-sided or a halved interval would cover 50 to 80 %.
    random = np.random.default_rng(11)
    covered, below, above = 0, 0, 0
    for study in range(400):
        differences = random.lognormal(-0.125, 0.5, size=50)
        interval = paired_bootstrap(differences, seed=study, resamples=600)
        covered += interval.low <= 1.0 <= interval.high
        below += interval.high < 1.0
        above += interval.low > 1.0
    assert 0.92 <= covered / 400 <= 0.975
    assert below <= 20
    assert above <= 20


def test_pairing_cancels_what_makes_a_prompt_hard() -> None:
    random = np.random.default_rng(2)
    difficulty = random.normal(0, 10, size=100)
    model, baseline = difficulty + 0.5 + random.normal(0, 0.1, size=100), difficulty + random.normal(0, 0.1, size=100)
    paired = paired_bootstrap(model - baseline, seed=0, resamples=1000)
    assert paired.low > 0.4
    assert paired.high < 0.6
    unpaired = paired_bootstrap(model, seed=0, resamples=1000)
    assert unpaired.high - unpaired.low > 2.0


def test_the_sign_is_model_minus_baseline() -> None:
    differences = np.array([1.0, 2.0, 3.0, 2.0, 1.5])
    assert paired_bootstrap(differences, seed=0, resamples=500).low > 0
    assert paired_bootstrap(-differences, seed=0, resamples=500).high < 0


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert paired_bootstrap(values, seed=4, resamples=500) == paired_bootstrap(values, seed=4, resamples=500)
    assert paired_bootstrap(values, seed=4, resamples=500) != paired_bootstrap(values, seed=5, resamples=500)


@pytest.mark.parametrize("values", [[0.0] * 20, [0.3] * 7, [0.1 + 0.2, 0.3, 0.3], [4.0]])
def test_equal_values_have_an_interval_of_zero_width_and_no_warning(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = paired_bootstrap(np.array(values), seed=0, resamples=500)
    assert interval.low == interval.high == interval.mean == pytest.approx(values[0])


def test_one_prompt_that_differs_gives_a_finite_interval_and_no_warning() -> None:
    values = np.zeros(50)
    values[7] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = paired_bootstrap(values, seed=0, resamples=1000)
    assert 0.0 <= interval.low <= 0.02 <= interval.high < 0.2


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, NAN]), np.array([1.0, math.inf]), np.ones((2, 2))])
def test_values_that_have_no_mean_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"values"):
        paired_bootstrap(values, seed=0, resamples=100)


def test_prompt_means_leave_out_what_is_not_finite() -> None:
    means = prompt_means(np.array([[1.0, 3.0], [5.0, NAN], [NAN, NAN]]))
    assert means[:2].tolist() == [2.0, 5.0]
    assert math.isnan(means[2])


def test_win_rate_by_hand() -> None:
    # Prompt 1: pairs (1,0) won, (1,2) lost, (2,0) won, (2,2) tie -> 2.5 of 4. Prompt 2: all four tie -> 0.5.
    # Prompt 3: only (3,1) is left, won -> 1. Prompt 4: no pair is left.
    model = np.array([[1.0, 2.0], [1.0, 1.0], [3.0, NAN], [NAN, NAN]])
    baseline = np.array([[0.0, 2.0], [1.0, 1.0], [1.0, NAN], [1.0, 1.0]])
    rates = win_rate(model, baseline)
    assert rates[:3].tolist() == [0.625, 0.5, 1.0]
    assert math.isnan(rates[3])
    assert win_rate(baseline, model)[:3].tolist() == [0.375, 0.5, 0.0]


def test_win_rate_wants_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="2 prompts of the model, 3 of the baseline"):
        win_rate(np.ones((2, 1)), np.ones((3, 1)))


def test_distinct_2_by_hand() -> None:
    # "a b a b": ab, ba, ab; "a b": ab. Two distinct of four. No pair spans two completions.
    assert distinct_n(["a b a b", "a b"]) == 0.5
    assert distinct_n(["a b", "c d"]) == 1.0
    assert distinct_n(["나는 밥을 먹었다", "나는 밥을 샀다"]) == 0.75
    assert distinct_n(["a a a"], n=1) == pytest.approx(1 / 3)
    assert distinct_n(["", "word"]) is None


def test_one_seed_is_the_paired_bootstrap_to_the_last_digit() -> None:
    random = np.random.default_rng(0)
    model, baseline = random.normal(size=(1, 40)), random.normal(size=(1, 40))
    assert seeded_bootstrap(model, seed=4, resamples=500) == paired_bootstrap(model[0], seed=4, resamples=500)
    expected = paired_bootstrap(model[0] - baseline[0], seed=4, resamples=500)
    assert seeded_bootstrap(model, baseline, seed=4, resamples=500) == expected


@pytest.mark.parametrize(("seeds", "seed_spread"), [(3, 0.3), (5, 0.3), (5, 0.1)])
def test_intervals_over_seeds_cover_95_percent_where_intervals_over_prompts_do_not(seeds: int, seed_spread: float) -> None:
    # 400 studies: true mean 0.5, a deviation of every seed (known spread), of every prompt (0.5) and of each of both (0.5). The
    # share that covers has a standard error of 1.1 points; seeds and prompts together are a little conservative: 93 to 99 %.
    # An interval over prompts that takes the seeds as given covers 50 to 90 % of the time.
    random = np.random.default_rng(5)
    with_seeds = without_seeds = 0
    for study in range(400):
        baseline = random.normal(0, 1.0, size=(1, 60))  # what makes a prompt hard for both: must cancel
        effects = seed_spread * random.normal(size=(seeds, 1)) + 0.5 * random.normal(size=(1, 60))
        model = baseline + 0.5 + effects + 0.5 * random.normal(size=(seeds, 60))
        interval = seeded_bootstrap(model, baseline, seed=study, resamples=400)
        with_seeds += interval.low <= 0.5 <= interval.high
        ignoring = seeded_bootstrap((model - baseline).mean(axis=0)[None], seed=study, resamples=400)
        without_seeds += ignoring.low <= 0.5 <= ignoring.high
    assert 0.93 <= with_seeds / 400 <= 0.99
    assert without_seeds / 400 <= 0.91
    assert with_seeds - without_seeds >= 20


def test_two_methods_have_seeds_of_their_own_and_the_same_prompts() -> None:
    random = np.random.default_rng(1)
    prompts = random.normal(0, 10, size=(1, 50))
    first = prompts + np.array([[0.9], [1.0], [1.1]])
    second = prompts + np.array([[-0.1], [0.1]])
    interval = seeded_bootstrap(first, second, seed=0, resamples=4000)
    assert interval.mean == pytest.approx(1.0)
    # Prompts cancel entirely; what is left are the seeds: Student's half-widths are 4.30 * 0.1 / sqrt(3) and 12.7 * 0.1.
    half = (interval.high - interval.low) / 2
    assert 0.5 < half < 2.0
    alone = seeded_bootstrap(first - prompts, seed=0, resamples=4000)
    assert (alone.high - alone.low) / 2 == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=0.2)


def test_equal_seeds_add_nothing() -> None:
    values = np.random.default_rng(2).normal(size=40)
    same = seeded_bootstrap(np.stack([values] * 3), seed=0, resamples=4000)
    one = paired_bootstrap(values, seed=0, resamples=4000)
    assert (same.low, same.high) == pytest.approx((one.low, one.high), abs=0.1 * (one.high - one.low))


def test_seeds_with_other_prompts_or_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="the two sides have 3 and 4 prompts"):
        seeded_bootstrap(np.ones((2, 3)), np.ones((2, 4)), seed=0, resamples=100)
    with pytest.raises(ValueError, match=r"arrays \[seeds, prompts\]"):
        seeded_bootstrap(np.ones(3), seed=0, resamples=100)
    with pytest.raises(ValueError, match="not finite"):
        seeded_bootstrap(np.array([[1.0, NAN], [1.0, 2.0]]), seed=0, resamples=100)


@pytest.mark.parametrize(("shift", "skewed"), [(0.25, False), (0.2, True), (-0.25, True), (0.1, False)])
def test_the_interval_of_confidence_1_minus_p_ends_at_zero(shift: float, skewed: bool) -> None:
    random = np.random.default_rng(9)
    values = shift + (random.exponential(size=60) - 1.0 if skewed else random.normal(size=60))
    p = paired_bootstrap(values, seed=5, resamples=4000).p
    theirs = bootstrap(
        (values,), np.mean, n_resamples=4000, method="BCa", confidence_level=1 - p, rng=np.random.default_rng(5)
    ).confidence_interval
    nearest = theirs.low if values.mean() > 0 else theirs.high
    assert nearest == pytest.approx(0.0, abs=0.002)


def test_p_agrees_with_students_and_with_the_sign_flip_test() -> None:
    from scipy.stats import permutation_test, ttest_1samp

    values = np.random.default_rng(4).normal(0.25, 1.0, size=80)
    p = paired_bootstrap(values, seed=0, resamples=20_000).p
    flips = permutation_test(
        (values, np.zeros(80)), lambda a, b: np.mean(a - b), permutation_type="samples", rng=np.random.default_rng(0)
    )
    assert p == pytest.approx(ttest_1samp(values, 0.0).pvalue, rel=0.25)
    assert p == pytest.approx(flips.pvalue, rel=0.25)


def test_p_of_no_difference_is_uniform_enough() -> None:
    # 400 studies of 50 prompts without a difference: 5 % have p < 0.05, with a standard error of 1.1 points.
    random = np.random.default_rng(12)
    found = sum(paired_bootstrap(random.normal(size=50), seed=study, resamples=500).p < 0.05 for study in range(400))
    assert 10 <= found <= 32


def test_p_of_equal_values_and_its_smallest() -> None:
    assert paired_bootstrap(np.zeros(9), seed=0, resamples=199).p == 1.0
    assert paired_bootstrap(np.ones(9), seed=0, resamples=199).p == pytest.approx(0.01)
    assert paired_bootstrap(np.random.default_rng(0).normal(9, 1, size=50), seed=0, resamples=199).p == pytest.approx(0.01)


def test_p_over_seeds_is_below_5_percent_where_the_interval_excludes_zero() -> None:
    random = np.random.default_rng(6)
    for shift in (0.2, 0.5, 0.8, 1.1):
        model = shift + np.array([[-0.2], [0.0], [0.2]]) + random.normal(0, 0.3, size=(3, 40))
        interval = seeded_bootstrap(model, seed=1, resamples=2000)
        assert (interval.p < 0.05) == (interval.low > 0), shift
    # Three seeds 0.2 apart: Student's t with two degrees of freedom, p of 0.5 / (0.2 / sqrt(3)).
    exact = seeded_bootstrap(np.array([[0.3], [0.5], [0.7]]) + np.zeros((3, 9)), seed=1, resamples=20_000)
    assert exact.p == pytest.approx(0.0494, rel=0.5)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 are 0.04, 0.06, 0.06, 0.04; none may be below one before it.
    assert holm({"b": 0.02, "a": 0.01, "d": 0.04, "c": 0.03}) == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    # statsmodels.stats.multitest.multipletests([0.001, 0.6, 0.015, 0.2], method="holm"): 0.004, 0.6, 0.045, 0.4.
    assert holm({"w": 0.001, "x": 0.6, "y": 0.015, "z": 0.2}) == pytest.approx({"w": 0.004, "x": 0.6, "y": 0.045, "z": 0.4})
    assert holm({"only": 0.03}) == {"only": 0.03}


def test_the_standardized_difference_by_hand() -> None:
    # Mean 2, deviations -1, 0, 1, so that the standard deviation with n - 1 is 1.
    assert standardized_difference(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert standardized_difference(np.array([-1.0, -2.0, -3.0])) == pytest.approx(-2.0)
    assert standardized_difference(np.array([0.5, 0.5, 0.5])) is None
    assert standardized_difference(np.array([0.5])) is None
