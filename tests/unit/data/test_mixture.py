"""Mixtures: how many rows of each part, which, and in which order."""

from __future__ import annotations

from align.data.mixture import mixed_places, part_sizes


def _ids(count: int) -> list[str]:
    return [f"row {number}" for number in range(count)]


def _mixed(parts: dict[str, list[str]], **weights: float) -> list[str]:
    return [f"{place.part}/{parts[place.part][place.index]}" for place in mixed_places(parts, weights)]


def test_the_part_that_runs_short_sets_the_size() -> None:
    assert part_sizes({"chat": 900, "math": 100}, {"chat": 3.0, "math": 1.0}) == {"chat": 300, "math": 100}
    assert part_sizes({"a": 3, "b": 7}, {"a": 0.1, "b": 0.7}) == {"a": 1, "b": 7}
    assert part_sizes({"a": 3, "b": 21}, {"a": 0.1, "b": 0.7}) == {"a": 3, "b": 21}
    assert part_sizes({"a": 5, "b": 0}, {"a": 1.0, "b": 1.0}) == {"a": 0, "b": 0}


def test_parts_are_interleaved_evenly_in_their_own_order() -> None:
    mixed = _mixed({"a": ["1", "2", "3", "4"], "b": ["1", "2"]}, a=2.0, b=1.0)
    assert mixed == ["a/1", "b/1", "a/2", "a/3", "b/2", "a/4"]


def test_no_row_is_taken_twice() -> None:
    mixed = _mixed({"a": _ids(10), "b": _ids(4)}, a=1.0, b=2.0)
    assert len(set(mixed)) == len(mixed) == 6


def test_a_row_more_moves_no_other_choice() -> None:
    before = set(_mixed({"a": _ids(100), "b": _ids(50)}, a=1.0, b=1.0))
    after = set(_mixed({"a": ["new", *_ids(100)], "b": _ids(50)}, a=1.0, b=1.0))
    assert len(before) == len(after) == 100
    assert after - before <= {"a/new"}
