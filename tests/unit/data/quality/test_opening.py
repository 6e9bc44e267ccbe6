"""Openings."""

from __future__ import annotations

from align.data.quality.opening import opening_of, openings


def test_the_first_three_words_are_counted() -> None:
    found = openings(["Write a poem about rain.", "- write  a POEM: snow", '"Tell me more"', "  ", "…", "왜 그래?"])
    assert found.top == (("write a poem", 2), ("tell me more", 1), ("왜 그래", 1))
    assert (found.texts, found.distinct, found.distinct_share) == (4, 3, 3 / 4)


def test_only_the_most_frequent_are_listed() -> None:
    found = openings(["b", "a", "c", "c"], num_words=1, num_top=2)
    assert found.top == (("c", 2), ("a", 1))
    assert found.distinct == 3


def test_no_texts_have_no_openings() -> None:
    assert openings([]).distinct_share == 0.0
    assert opening_of(" \n") == ""
