"""The order of rows in batches of similar length."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from align.training.sampler import LengthGroupedSampler


@given(st.lists(st.integers(1, 99), max_size=200), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    sampler = LengthGroupedSampler(lengths, batch_size=batch_size, seed=seed)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(lengths)))


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = [random.Random(1).randrange(1, 99) for _ in range(100)]
    sampler = LengthGroupedSampler(lengths, batch_size=4, seed=1)
    first = list(sampler)
    assert list(LengthGroupedSampler(lengths, batch_size=4, seed=1)) == first
    assert list(LengthGroupedSampler(lengths, batch_size=4, seed=2)) != first
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_batches_have_less_padding_than_random_ones_and_are_not_sorted() -> None:
    chance = random.Random(2)
    lengths = [chance.randrange(1, 200) for _ in range(640)]

    def longest(order: list[int]) -> list[int]:
        return [max(lengths[i] for i in order[start : start + 8]) for start in range(0, len(order), 8)]

    grouped = longest(list(LengthGroupedSampler(lengths, batch_size=8, seed=0)))
    assert sum(grouped) < 0.7 * sum(longest(chance.sample(range(640), 640)))
    assert grouped != sorted(grouped, reverse=True)
