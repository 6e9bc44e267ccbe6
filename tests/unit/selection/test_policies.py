"""Every pair policy, several scorers and the length penalty, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from align.records import Preference
from align.selection import Group, build_pairs
from align.testing import scored_candidate


def group(*candidates: tuple[str, float | tuple[float | None, float | None] | None]) -> Group:
    """Candidates as (completion, score by a) or (completion, (score by a, score by b))."""
    return [
        scored_candidate({"a": scores[0], "b": scores[1]} if isinstance(scores, tuple) else {"a": scores}, text, index)
        for index, (text, scores) in enumerate(candidates)
    ]


def shown(pairs: list[Preference]) -> list[tuple[str, str, str]]:
    return [(pair.id, pair.chosen, pair.rejected) for pair in pairs]


def build(*candidates: Any, **options: Any) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    options = options if "scorers" in options else {"scorer": "a", **options}
    pairs, drops = build_pairs([group(*candidates)], **options)
    return shown(pairs), [(drop.id, drop.drop_reason) for drop in drops]


SIX = [("v", 1.0), ("w", 5.0), ("x", 3.0), ("x", 0.5), ("y", 4.5), ("z", 2.0)]
"""Different texts by score: w 5, y 4.5, x 3, z 2, v 1."""


def test_best_vs_each() -> None:
    pairs, drops = build(*SIX, ("u", 5.0), policy="best_vs_each", min_margin=1.0)
    assert pairs == [("p/1-2", "w", "x"), ("p/1-5", "w", "z"), ("p/1-0", "w", "v")]
    assert drops == [("p/1-6", "tie"), ("p/1-4", "margin_below_min")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, ("w", "v")),
        (0.0, 3.6, ("y", "v")),
        (0.0, 3.0, ("w", "z")),
        (0.0, 1.0, ("x", "z")),
    ],
)
def test_margin_window(low: float, high: float, expected: tuple[str, str]) -> None:
    """The last: x - z = z - v = 1.0, and x has the lower candidate_index."""
    pairs, _ = build(*SIX, policy="margin_window", min_margin=low, max_margin=high)
    assert pairs == [("p", *expected)]


def test_margins_outside_the_window() -> None:
    assert build(("a", 1.0), ("b", 9.0), policy="margin_window", max_margin=2.0) == ([], [("p", "outside_margin_window")])
    tied = [("a", 1.0), ("b", 1.0), ("a", 0.5)]
    assert build(*tied, policy="margin_window", max_margin=2.0) == ([], [("p", "tie")])


def test_mean_sigma() -> None:
    """Scores 1 to 5 without 4 and 4.5: 1, 2, 3, 4.5, 5 have mean 3.1 and deviation 1.497; 4.597 is nearest to 4.5, 1.603 to 2."""
    assert build(*SIX, policy="mean_sigma", sigmas=1.0)[0] == [("p", "y", "z")]
    assert build(*SIX, policy="mean_sigma")[0] == [("p", "w", "v")]


def test_both_targets_nearest_to_one_candidate() -> None:
    """Mean 2, deviation 1.414, so 0.01 deviations are nothing beside a candidate at the mean."""
    three = [("a", 0.0), ("b", 2.0), ("c", 4.0)]
    assert build(*three, policy="mean_sigma", sigmas=0.01) == ([], [("p", "same_candidate")])


def test_top_k_bottom_k() -> None:
    pairs, drops = build(*SIX, policy="top_k_bottom_k")
    assert [pair[1:] for pair in pairs] == [("w", "z"), ("w", "v"), ("y", "z"), ("y", "v")]
    assert drops == []


def test_top_and_bottom_that_overlap_give_no_pair_twice() -> None:
    pairs, drops = build(("a", 1.0), ("b", 2.0), ("c", 2.0), policy="top_k_bottom_k", k=5)
    assert pairs == [("p/1-0", "b", "a"), ("p/2-0", "c", "a")]
    assert drops == [("p/1-2", "tie")]


def test_length_matched() -> None:
    """10 and 8 characters have the ratio 1.25; the larger margin of 10 and 4 characters does not count."""
    texts = [("a" * 10, 3.0), ("b" * 8, 2.0), ("c" * 4, 0.0), ("d" * 6, 1.5)]
    assert build(*texts, policy="length_matched")[0] == [("p", "a" * 10, "b" * 8)]
    assert build(*texts, policy="length_matched", max_length_ratio=2.0)[0] == [("p", "b" * 8, "c" * 4)]
    assert build(*texts, policy="length_matched", max_length_ratio=1.1) == ([], [("p", "no_length_match")])


TWO = [("one", (1.0, 30.0)), ("two", (2.0, 20.0)), ("six", (6.0, 10.0))]


def test_weighted_sum() -> None:
    """1 + 3 = 4, 2 + 2 = 4, 6 + 1 = 7."""
    pairs, _ = build_pairs([group(*TWO)], scorers={"a": 1.0, "b": 0.1})
    assert shown(pairs) == [("p", "six", "one")]
    assert (pairs[0].chosen_score, pairs[0].rejected_score) == (7.0, 4.0)


def test_z_scores_know_no_unit() -> None:
    """a: (1, 2, 6) has mean 3 and deviation √(14/3); b: (30, 20, 10) has mean 20 and deviation √(200/3)."""
    pairs, _ = build_pairs([group(*TWO)], scorers={"a": 1.0, "b": 0.5}, combine="z_scores")
    deviation_a, deviation_b = math.sqrt(14 / 3), math.sqrt(200 / 3)
    assert shown(pairs) == [("p", "six", "two")]
    assert pairs[0].chosen_score == pytest.approx(3 / deviation_a - 0.5 * 10 / deviation_b)
    assert pairs[0].rejected_score == pytest.approx(-1 / deviation_a)


def test_a_scorer_that_says_the_same_of_all_counts_nothing_in_z_scores() -> None:
    pairs, _ = build_pairs([group(("x", (0.1, 1.0)), ("y", (0.1, 2.0)))], scorers={"a": 9.0, "b": 1.0}, combine="z_scores")
    assert (pairs[0].chosen_score, pairs[0].rejected_score) == (1.0, -1.0)


def test_vote() -> None:
    """By a the shares won are 1/4, 1/4, 1 (a tie is half); by b 1, 1/2, 0; weights 3 to 1."""
    pairs, _ = build_pairs(
        [group(("x", (1.0, 3.0)), ("y", (1.0, 2.0)), ("z", (5.0, 1.0)))], scorers={"a": 3.0, "b": 1.0}, combine="vote"
    )
    assert shown(pairs) == [("p", "z", "y")]
    assert pairs[0].chosen_score == pytest.approx(0.75)
    assert pairs[0].rejected_score == pytest.approx(0.75 * 0.25 + 0.25 * 0.5)


def test_a_candidate_that_one_scorer_did_not_score() -> None:
    """It is left out, whatever the other says."""
    pairs, _ = build(("x", (9.0, None)), ("y", (2.0, 2.0)), ("z", (1.0, 1.0)), scorers={"a": 1.0, "b": 1.0})
    assert pairs == [("p", "y", "z")]


def test_disagreement() -> None:
    """six against two: a says six, b says two."""
    options = {"scorers": {"a": 3.0, "b": 1.0}, "combine": "vote", "policy": "best_vs_second"}
    assert build(*TWO, **options, min_agreement=0.75)[0] == [("p", "six", "two")]
    _, (drop,) = build_pairs([group(*TWO)], **options, min_agreement=0.8)  # type: ignore[arg-type]
    assert (drop.drop_reason, drop.detail) == ("disagreement", "0.75 of the weight prefers the chosen one, min_agreement 0.8")


LONG, SHORT = "l" * 300, "s" * 100


def test_the_length_penalty_ranks_and_the_scores_stay() -> None:
    """3 - 3 * 0.5 = 1.5 against 1 - 1 * 0.5 = 0.5."""
    ((pair,), _) = build_pairs([group((LONG, 3.0), (SHORT, 1.0))], scorer="a", length_penalty=0.5, min_margin=1.0)
    assert (pair.chosen, pair.chosen_score, pair.rejected_score) == (LONG, 3.0, 1.0)


@pytest.mark.parametrize("long_score", [1.5, 1.0])
def test_a_label_is_never_turned_round_by_length_in_silence(long_score: float) -> None:
    candidates = [(LONG, long_score), (SHORT, 1.0)]
    assert build(*candidates, length_penalty=1.0) == ([], [("p", "flipped_by_length")])
    assert build(*candidates, length_penalty=1.0, on_length_flip="keep") == ([("p", SHORT, LONG)], [])


@pytest.mark.parametrize(
    "options",
    [
        {"max_margin": 1.0},
        {"policy": "margin_window"},
        {"policy": "margin_window", "min_margin": 2.0, "max_margin": 2.0},
        {"policy": "mean_sigma", "sigmas": 0.0},
        {"policy": "mean_sigma", "k": 2},
        {"policy": "top_k_bottom_k", "k": 0},
        {"policy": "length_matched", "max_length_ratio": 0.9},
        {"policy": "best_vs_each", "max_length_ratio": 2.0},
        {"scorers": {"a": 1.0}},
        {"scorer": None},
        {"scorer": None, "scorers": {}},
        {"scorer": None, "scorers": {"a": 0.0}},
        {"scorer": None, "scorers": {"a": math.inf}},
        {"combine": "vote"},
        {"min_agreement": 0.5},
        {"scorer": None, "scorers": {"a": 1.0}, "min_agreement": 1.1},
        {"scorer": None, "scorers": {"a": 1.0}, "combine": "mean"},
        {"length_penalty": -1.0},
        {"on_length_flip": "keep"},
        {"length_penalty": 1.0, "on_length_flip": "both"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must (not )?be|expected|goes with policy"):
        build_pairs([], **{"scorer": "a", **options})
