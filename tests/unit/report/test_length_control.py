"""Win rates at equal length: planted wins by length alone vanish, wins by quality stay, and the interval covers the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from align.report.length_control import length_controlled, win_rates
from align.report.statistics import FloatArray, seeded_bootstrap


def planted(
    quality: float, slope: float, *, prompts: int = 4000, longer: float = 40.0, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Outcomes and length differences [1, prompts, 1] of longer completions, drawn from the regression itself."""
    random = np.random.default_rng(seed)
    lengths = random.normal(longer, 60.0, size=(1, prompts, 1))
    chances = expit(quality + slope * np.tanh(lengths / 60.0))
    return (random.random(lengths.shape) < chances).astype(float), lengths


def test_a_model_that_wins_by_length_alone_goes_to_half() -> None:
    outcomes, lengths = planted(0.0, 2.5)
    assert outcomes.mean() > 0.65
    values = length_controlled(outcomes, lengths)
    assert values is not None
    assert win_rates(float(values.mean()))[0] == pytest.approx(0.5, abs=0.03)


def test_quality_stays_and_a_penalty_on_length_is_given_back() -> None:
    outcomes, lengths = planted(1.0, -2.0)
    assert outcomes.mean() < 0.55
    values = length_controlled(outcomes, lengths)
    assert values is not None
    assert values.mean() == pytest.approx(1.0, abs=0.15)


def test_wins_that_do_not_depend_on_length_are_the_win_rate() -> None:
    outcomes = np.array([1.0, 1.0, 0.5, 0.0] * 50).reshape(1, 200, 1)
    values = length_controlled(outcomes, np.array([[-9.0] * 4 + [9.0] * 4] * 25).reshape(1, 200, 1))
    assert values is not None
    assert win_rates(float(values.mean()))[0] == pytest.approx(0.625, abs=0.001)
    assert length_controlled(outcomes, np.zeros((1, 200, 1))) is None, "there is no other length to control for"


def test_nothing_is_said_where_nearly_all_completions_are_longer() -> None:
    outcomes, lengths = planted(0.0, 2.5, longer=300.0)
    assert length_controlled(outcomes, lengths) is None
    assert length_controlled(np.full((1, 3, 1), math.nan), np.zeros((1, 3, 1))) is None


def test_the_influences_give_the_interval_of_a_refitted_bootstrap() -> None:
    outcomes, lengths = planted(0.4, 1.5, prompts=300)
    values = length_controlled(outcomes, lengths)
    assert values is not None
    interval = seeded_bootstrap(values, seed=1, resamples=2000)
    random = np.random.default_rng(2)
    drawn = [random.integers(300, size=300) for _ in range(60)]
    refitted = [
        values.mean() for index in drawn if (values := length_controlled(outcomes[:, index], lengths[:, index])) is not None
    ]
    assert (interval.high - interval.low) / 3.92 == pytest.approx(np.std(refitted), rel=0.35)


def test_prompts_count_once_and_weights_choose_among_their_pairs() -> None:
    outcomes, lengths = planted(0.7, 1.0, prompts=500)
    values = length_controlled(outcomes, lengths)
    twice = length_controlled(np.repeat(outcomes, 3, axis=2), np.repeat(lengths, 3, axis=2))
    assert values is not None
    assert twice == pytest.approx(values, abs=1e-6)
    # The second pair of each prompt has no weight, and a missing one none either.
    other = np.concatenate([outcomes, 1 - outcomes], axis=2)
    weights = np.concatenate([np.full(outcomes.shape, 0.3), np.zeros(outcomes.shape)], axis=2)
    assert length_controlled(other, np.repeat(lengths, 2, axis=2), weights) == pytest.approx(values, abs=1e-6)
    missing = np.concatenate([outcomes, np.full(outcomes.shape, math.nan)], axis=2)
    assert length_controlled(missing, np.repeat(lengths, 2, axis=2)) == pytest.approx(values, abs=1e-6)
