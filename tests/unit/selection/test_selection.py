"""Best of n and pairs on groups small enough to rank by eye."""

from __future__ import annotations

from typing import Any

import pytest

from align.errors import StageError
from align.records import FinishReason
from align.selection import Group, PairPolicy, best_of_n, build_pairs, group_candidates, label_candidates
from align.selection.best_of_n import BestRule, BestSelector
from align.selection.candidate import candidates_of
from align.selection.label import LabelRule, LabelSelector
from align.selection.selector import SelectionTally, Totals
from align.testing import scored_candidate

Shown = tuple[str, float | None] | tuple[str, float | None, FinishReason]


def _group(*candidates: Shown, prompt_id: str = "p", text: str = "x") -> Group:
    """Candidates as (completion, score) or (completion, score, finish_reason)."""
    return [
        scored_candidate(
            {"rm": score, "other": 0.0},
            completion,
            index,
            prompt_id=prompt_id,
            prompt=text,
            finish_reason=end[0] if end else "stop",
        )
        for index, (completion, score, *end) in enumerate(candidates)
    ]


class TestGroups:
    def test_prompts_with_the_same_text_stay_two(self) -> None:
        first, second = _group(("a", 1), prompt_id="p1"), _group(("b", 2), prompt_id="p2")
        assert group_candidates([*second, *first]) == [second, first]

    def test_a_candidate_that_is_there_twice(self) -> None:
        with pytest.raises(StageError, match="'p' has candidate 0 twice"):
            group_candidates([*_group(("a", 1)), *_group(("b", 1))])

    def test_two_prompts_under_one_id(self) -> None:
        other = _group(("a", 1), ("b", 1), text="y")[1]
        with pytest.raises(StageError, match="two different prompts have the id 'p'"):
            group_candidates([*_group(("a", 1)), other])


class TestBestOfN:
    def test_the_best_is_kept(self) -> None:
        (row,), drops = best_of_n([_group(("a", 1), ("b", 3), ("c", 2))], scorer="rm")
        assert (row.id, row.completion, row.prompt[0].content, row.line) == ("p", "b", "x", None)
        assert drops == []

    def test_a_completion_that_occurs_twice_counts_once_among_the_kept(self) -> None:
        selector, tally = BestSelector(BestRule(scorer="rm")), SelectionTally()
        for group in (_group(("a", 3), ("a", 3), ("b", 1), ("c", None)), _group(("d", 1), ("e", 0))):
            selector.select(candidates_of(group, ["rm"]), tally)
        # The rows are a and d: their mean is 2, not the 7/3 of a, a and d. All candidates with a score have 8/5.
        assert selector.metrics(Totals([tally.facts()])) == {"score_mean_kept": 2.0, "score_mean_all": 1.6}

    def test_equal_scores_go_by_candidate_index(self) -> None:
        assert best_of_n([_group(("a", 1), ("b", 3), ("c", 3))], scorer="rm")[0][0].completion == "b"

    def test_several_are_kept_in_order_and_equal_texts_once(self) -> None:
        group = _group(("a", 1), ("b", 3), ("b", 2.5), ("c", 2))
        assert [(row.id, row.completion) for row in best_of_n([group], scorer="rm", keep=3)[0]] == [
            ("p/1", "b"),
            ("p/3", "c"),
            ("p/0", "a"),
        ]

    @pytest.mark.parametrize(
        ("group", "reason"),
        [
            (_group(("a", 1), ("b", 1.9)), "below_min_score"),
            (_group(("a", 3, "length"), ("b", 4, "length")), "truncated"),
            (_group(("a", None), ("b", None)), "nonfinite_score"),
            (_group(("", 3), (" ", 3)), "too_few_candidates"),
        ],
    )
    def test_drops(self, group: Group, reason: str) -> None:
        kept, drops = best_of_n([group], scorer="rm", min_score=2)
        assert (kept, [(drop.id, drop.drop_reason) for drop in drops]) == ([], [("p", reason)])

    def test_the_bound_itself_is_good_enough(self) -> None:
        assert best_of_n([_group(("a", 2))], scorer="rm", min_score=2)[0]

    def test_truncated_candidates_on_request(self) -> None:
        group = _group(("a", 3, "length"), ("b", 1))
        assert best_of_n([group], scorer="rm")[0][0].completion == "b"
        assert best_of_n([group], scorer="rm", keep_truncated=True)[0][0].completion == "a"

    def test_keep_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="keep must be at least 1"):
            best_of_n([], scorer="rm", keep=0)


class TestLabels:
    def test_without_a_threshold_the_best_is_good_and_the_first_of_the_worst_bad(self) -> None:
        rows, drops = label_candidates([_group(("a", 1), ("b", 3), ("c", 1), ("d", 2))], scorer="rm")
        assert [(row.id, row.completion, row.desirable) for row in rows] == [("p/1", "b", True), ("p/0", "a", False)]
        assert drops == []

    def test_with_a_threshold_every_different_text_has_a_label_and_the_threshold_itself_is_good(self) -> None:
        rows, _ = label_candidates(
            [_group(("a", 1), ("b", 2), ("b", 1.5), ("c", None), ("d", 5, "length"))], scorer="rm", threshold=2
        )
        assert [(row.id, row.completion, row.desirable) for row in rows] == [("p/0", "a", False), ("p/1", "b", True)]
        alone, _ = label_candidates([_group(("a", 1))], scorer="rm", threshold=2)
        assert [row.desirable for row in alone] == [False]

    @pytest.mark.parametrize(
        ("group", "reason"),
        [
            (_group(("a", 1), ("b", 1)), "tie"),
            (_group(("a", 3), ("a", 1)), "identical"),
            (_group(("a", 3), ("b", 4, "length")), "truncated"),
            (_group(("a", None), ("b", 1)), "nonfinite_score"),
        ],
    )
    def test_drops(self, group: Group, reason: str) -> None:
        rows, drops = label_candidates([group], scorer="rm")
        assert (rows, [(drop.id, drop.drop_reason) for drop in drops]) == ([], [("p", reason)])

    def test_metrics(self) -> None:
        selector, tally = LabelSelector(LabelRule(scorer="rm", threshold=2)), SelectionTally()
        selector.select(candidates_of(_group(("aa", 3), ("bbbb", 5), ("c", 1)), ["rm"]), tally)
        metrics = selector.metrics(Totals([tally.facts()]))
        assert metrics.pop("desirable_share") == pytest.approx(2 / 3)
        assert metrics == {
            "score_mean_desirable": 4.0,
            "score_mean_undesirable": 1.0,
            "characters_mean_desirable": 3.0,
            "characters_mean_undesirable": 1.0,
        }
        only_bad = SelectionTally()
        selector.select(candidates_of(_group(("c", 1)), ["rm"]), only_bad)
        assert selector.metrics(Totals([only_bad.facts()]))["score_mean_desirable"] is None


class TestPairs:
    @pytest.mark.parametrize(("policy", "rejected"), [("max_min", "a"), ("best_vs_second", "c")])
    def test_policies(self, policy: PairPolicy, rejected: str) -> None:
        (pair,), _ = build_pairs([_group(("a", 1), ("b", 3), ("c", 2.5), ("d", 1))], scorer="rm", policy=policy)
        assert (pair.id, pair.chosen, pair.rejected, pair.chosen_score) == ("p", "b", rejected, 3)
        assert pair.rejected_score == (1 if rejected == "a" else 2.5)

    def test_a_random_rejected_one_depends_on_seed_and_prompt_only(self) -> None:
        groups = [_group(*((text, score) for score, text in enumerate("abcdefgh")), prompt_id=f"p{n}") for n in range(20)]
        pairs, _ = build_pairs(groups, scorer="rm", policy="max_random", seed=1)
        assert all(pair.chosen == "h" for pair in pairs)
        assert len({pair.rejected for pair in pairs}) > 3
        assert build_pairs(groups[::-1], scorer="rm", policy="max_random", seed=1)[0] == pairs[::-1]
        assert build_pairs(groups, scorer="rm", policy="max_random", seed=2)[0] != pairs

    @pytest.mark.parametrize(
        ("group", "reason", "detail"),
        [
            (_group(("a", 1), ("b", 1)), "tie", "all 2 candidates score 1"),
            (_group(("a", 1), ("a", 1)), "identical", "all 2 candidates are the same text"),
            (_group(("a", 1), ("a", 2)), "identical", "all 2 candidates are the same text"),
            (_group(("a", 2), ("b", 2), ("a", 1)), "identical", "same text as the best"),
            (_group(("a", 1), ("b", 1.4)), "margin_below_min", "1.4 - 1 = 0.4, min_margin 0.5"),
            (_group(("a", 1)), "too_few_candidates", "1 of 1 candidates can be used"),
            (_group(("a", 1), ("b", 2, "length")), "truncated", "1 of 2 candidates can be used (1 cut at the token limit)"),
            (_group(("a", 1), ("b", None), ("c", None), ("d", 2, "length")), "nonfinite_score", "2 without a finite score"),
        ],
    )
    def test_drops(self, group: Group, reason: str, detail: str) -> None:
        pairs, (drop,) = build_pairs([group], scorer="rm", min_margin=0.5)
        assert (pairs, drop.id, drop.drop_reason) == ([], "p", reason)
        assert detail in drop.detail

    def test_the_margin_itself_is_enough(self) -> None:
        assert build_pairs([_group(("a", 1), ("b", 1.5))], scorer="rm", min_margin=0.5)[0]

    def test_the_least_difference_is_no_tie(self) -> None:
        assert build_pairs([_group(("a", 0), ("b", 5e-324))], scorer="rm")[0]

    def test_the_chosen_text_is_never_rejected_though_it_was_sampled_again(self) -> None:
        (pair,), _ = build_pairs([_group(("a", 3), ("a", 1), ("b", 2))], scorer="rm")
        assert (pair.chosen, pair.rejected) == ("a", "b")

    def test_a_scorer_that_did_not_score(self) -> None:
        with pytest.raises(StageError, match="no score by 'judge'; it has rm, other"):
            build_pairs([_group(("a", 1), ("b", 2))], scorer="judge")

    def test_statistical_rejection_sampling_depends_on_seed_and_prompt_only(self) -> None:
        groups = [_group(*((text, score / 4) for score, text in enumerate("abcdefgh")), prompt_id=f"p{n}") for n in range(20)]
        pairs, _ = build_pairs(groups, scorer="rm", policy="rso", seed=1)
        assert len({pair.chosen for pair in pairs}) > 1
        assert build_pairs(groups[::-1], scorer="rm", policy="rso", seed=1)[0] == pairs[::-1]
        assert build_pairs(groups, scorer="rm", policy="rso", seed=2)[0] != pairs
        assert build_pairs(groups, scorer="rm", policy="rso", seed=1, rso_beta=0.5, rso_accept=2)[0] == pairs
        assert build_pairs(groups, scorer="rm", policy="rso", seed=1, rso_beta=1e-9)[0][0].rejected == "g"

    def test_equal_texts_are_one_candidate_of_statistical_rejection_sampling(self) -> None:
        (pair,), _ = build_pairs([_group(("a", 3), ("a", 1), ("b", 2))], scorer="rm", policy="rso", rso_accept=3)
        assert (pair.chosen, pair.rejected, pair.chosen_score) == ("a", "b", 3)

    def test_two_accepted_ones_that_tie(self) -> None:
        group = _group(("a", 3), ("b", 3), ("c", -1000))
        _, (drop,) = build_pairs([group], scorer="rm", policy="rso")
        assert (drop.drop_reason, drop.detail) == ("tie", "the two that were drawn score 3")

    @pytest.mark.parametrize(
        "options",
        [
            {"min_margin": -1},
            {"min_margin": float("nan")},
            {"policy": "best"},
            {"rso_beta": 1.0},
            {"policy": "max_min", "rso_accept": 2},
            {"policy": "rso", "rso_beta": 0.0},
            {"policy": "rso", "rso_beta": float("nan")},
            {"policy": "rso", "rso_beta": float("inf")},
            {"policy": "rso", "rso_accept": 1},
        ],
    )
    def test_options_that_make_no_sense(self, options: dict[str, Any]) -> None:
        option = list(options)[-1]
        with pytest.raises(ValueError, match=rf"{option}:? (must be|expected|goes with policy)"):
            build_pairs([], scorer="rm", **options)

    def test_a_setting_that_is_misspelt(self) -> None:
        with pytest.raises(ValueError, match="polici: unknown key; did you mean 'policy'"):
            build_pairs([], scorer="rm", polici="rso")
        with pytest.raises(ValueError, match="scorer: this key is missing"):
            best_of_n([], keep=2)

    def test_a_group_of_two_prompts(self) -> None:
        mixed = [*_group(("a", 1), prompt_id="p"), *_group(("b", 2), prompt_id="q")]
        with pytest.raises(ValueError, match="exactly one prompt"):
            build_pairs([mixed], scorer="rm")
