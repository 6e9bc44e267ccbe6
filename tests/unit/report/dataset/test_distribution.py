"""Lengths counted over any number of rows, and samples that depend on the rows alone."""

from __future__ import annotations

import numpy as np
import pytest

from align.report.dataset.distribution import Distribution, shared_edges
from align.report.dataset.sample import SmallestKeys, row_key


def test_percentiles_are_lengths_that_occur() -> None:
    lengths = Distribution([1, 2, 3, 4, 100])
    assert [lengths.percentile(percent) for percent in (0, 20, 50, 80, 95, 100)] == [1, 1, 3, 4, 100, 100]
    assert (lengths.rows, lengths.mean, lengths.maximum) == (5, 22.0, 100)


def test_95_percent_of_twenty_rows_are_nineteen() -> None:
    assert Distribution(range(1, 21)).percentile(95) == 19


def test_nothing_counted_is_zero() -> None:
    empty = Distribution()
    assert empty.as_json() == {"rows": 0, "mean": 0.0, "median": 0, "p95": 0, "max": 0}


def test_a_row_at_the_limit_is_not_over_it() -> None:
    assert Distribution([10, 11, 11, 12]).over(11) == 1


@pytest.mark.parametrize("values", [[0], [0, 1, 2], list(range(500)), [3] * 400 + [100_000]])
def test_no_row_is_missing_from_a_histogram(values: list[int]) -> None:
    lengths = Distribution(values)
    edges = shared_edges([lengths], 20)
    assert len(edges) <= 22
    assert lengths.histogram(edges).sum() == len(values)


def test_one_long_text_does_not_flatten_the_others() -> None:
    edges = shared_edges([Distribution([3] * 400 + [100_000])], 20)
    assert edges[-1] < 10


def test_a_sample_does_not_depend_on_the_order_of_the_file() -> None:
    rows = [f"row {number}" for number in range(1000)]
    forward, backward = SmallestKeys[str](50), SmallestKeys[str](50)
    for row in rows:
        forward.offer(row_key(row, 17), row)
    for row in reversed(rows):
        backward.offer(row_key(row, 17), row)
    assert forward.in_file_order() == backward.in_file_order()[::-1]
    assert forward.in_file_order() == sorted(forward.in_file_order(), key=rows.index)


def test_a_smaller_sample_is_part_of_a_larger_one_and_another_seed_draws_others() -> None:
    drawn, samples = {}, {}
    for size, seed in ((20, 1), (200, 1), (20, 2)):
        sample = SmallestKeys[int](size)
        for number in range(1000):
            sample.offer(row_key(str(number), seed), number)
        drawn[size, seed], samples[size, seed] = set(sample.in_file_order()), sample
    assert drawn[20, 1] < drawn[200, 1]
    assert set(samples[200, 1].smallest(20)) == drawn[20, 1]
    assert drawn[20, 1] != drawn[20, 2]
    assert abs(np.mean(sorted(drawn[200, 1])) - 500) < 75  # four standard deviations of the mean of 200


def test_equal_rows_are_drawn_as_often_as_they_occur() -> None:
    sample = SmallestKeys[int](3)
    for number in range(5):
        sample.offer(row_key("same", 0), number)
    assert sample.in_file_order() == [0, 1, 2]


def test_a_sample_of_none_is_empty() -> None:
    sample = SmallestKeys[int](0)
    sample.offer(1, 1)
    assert sample.in_file_order() == []
