"""The length-only baseline."""

from __future__ import annotations

import random

import pytest

from align.data.quality.length_baseline import Share, length_baseline, wilson


def test_wilson_by_hand() -> None:
    """8 of 10: (0.8 + 0.19207) / 1.38415 ± 1.95996 · sqrt(0.016 + 0.0096036) / 1.38415."""
    assert wilson(8, 10) == pytest.approx(Share(0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx(Share(0.0, 0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10).high == pytest.approx(1.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 2), (3, 2)])
def test_wilson_refuses_what_is_no_share(successes: float, trials: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        wilson(successes, trials)


def test_the_longer_side_always_wins() -> None:
    found = length_baseline([(f"p{number}", 20 + number, 10) for number in range(50)])
    assert found is not None
    assert (found.pairs, found.equal_length) == (50, 0)
    assert (found.longer_won.value, found.accuracy.value) == (1.0, 1.0)


def test_the_shorter_side_always_wins_is_found_too() -> None:
    found = length_baseline([(f"p{number}", 10, 20 + number) for number in range(50)])
    assert found is not None
    assert (found.longer_won.value, found.accuracy.value) == (0.0, 1.0)


def test_length_that_decides_nothing_is_a_coin() -> None:
    source = random.Random(2)
    pairs = [(f"p{number}", source.randint(1, 500), source.randint(1, 500)) for number in range(2000)]
    found = length_baseline(pairs)
    assert found is not None
    assert 0.45 < found.accuracy.value < 0.55
    assert found == length_baseline(pairs[::-1])


def test_equal_lengths_are_half_a_success() -> None:
    found = length_baseline([("a", 5, 5), ("b", 9, 4), ("c", 0, 0)])
    assert found is not None
    assert (found.equal_length, found.longer_won.value) == (2, 2 / 3)


def test_a_pair_is_not_judged_by_a_fit_on_itself() -> None:
    """One pair: nothing to fit on, so no opinion."""
    found = length_baseline([("only", 9, 4)])
    assert found is not None and found.accuracy.value == 0.5
    assert length_baseline([]) is None
