"""What selection must keep whatever it is given: no prompt is lost, no order matters, no pair is a tie."""

from __future__ import annotations

import math
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from align.records import Message, ScoredCandidate
from align.selection import Group, best_of_n, build_pairs, group_candidates

SCORES = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 2.0]) | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def groups_of_candidates(draw: st.DrawFn) -> list[Group]:
    groups: list[Group] = []
    for number in range(draw(st.integers(0, 5))):
        group = [
            ScoredCandidate(
                prompt_id=f"p{number}",
                candidate_index=index,
                prompt=[Message(role="user", content="the same text under every id")],
                reference=None,
                completion=draw(st.sampled_from(["", "a", "b", "c", "dd"])),
                completion_token_ids=[],
                completion_tokens=0,
                finish_reason=draw(st.sampled_from(["stop", "stop", "stop", "length"])),
                seed=0,
                scores={"rm": draw(SCORES)},
            )
            for index in range(draw(st.integers(1, 5)))
        ]
        groups.append(group)
    return groups


PAIR_OPTIONS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["max_min", "max_random", "best_vs_second", "rso"]),
        "min_margin": st.sampled_from([0.0, 0.4, 3.0]),
        "seed": st.integers(0, 3),
        "keep_truncated": st.booleans(),
    }
)
BEST_OPTIONS = st.fixed_dictionaries(
    {
        "keep": st.integers(1, 4),
        "min_score": st.none() | st.sampled_from([0.0, 1.0]),
        "keep_truncated": st.booleans(),
    }
)


@settings(max_examples=80, deadline=None)
@given(groups=groups_of_candidates(), options=PAIR_OPTIONS)
def test_every_prompt_is_a_pair_or_a_drop(groups: list[Group], options: dict[str, Any]) -> None:
    pairs, drops = build_pairs(groups, scorer="rm", **options)
    assert sorted([pair.id for pair in pairs] + [drop.id for drop in drops]) == [group[0].prompt_id for group in groups]
    assert all(drop.drop_reason and drop.detail for drop in drops)


@settings(max_examples=80, deadline=None)
@given(groups=groups_of_candidates(), options=PAIR_OPTIONS)
def test_a_pair_is_two_different_candidates_of_its_own_prompt(groups: list[Group], options: dict[str, Any]) -> None:
    of_prompt = {group[0].prompt_id: group for group in groups}
    for pair in build_pairs(groups, scorer="rm", **options)[0]:
        assert pair.chosen_score is not None
        assert pair.rejected_score is not None
        assert pair.chosen_score > pair.rejected_score
        assert pair.chosen_score - pair.rejected_score >= options["min_margin"]
        assert pair.chosen != pair.rejected
        usable = [
            candidate
            for candidate in of_prompt[pair.id]
            if candidate.scores["rm"] is not None and (options["keep_truncated"] or candidate.finish_reason == "stop")
        ]
        scored = {(candidate.completion, candidate.scores["rm"]) for candidate in usable}
        assert {(pair.chosen, pair.chosen_score), (pair.rejected, pair.rejected_score)} <= scored
        if options["policy"] != "rso":
            assert pair.chosen_score == max(score for text, score in scored if text and score is not None)


@settings(max_examples=80, deadline=None)
@given(groups=groups_of_candidates(), options=BEST_OPTIONS)
def test_every_prompt_is_kept_or_dropped(groups: list[Group], options: dict[str, Any]) -> None:
    kept, drops = best_of_n(groups, scorer="rm", **options)
    kept_prompts = [row.id.split("/")[0] for row in kept]
    assert sorted(set(kept_prompts) | {drop.id for drop in drops}) == [group[0].prompt_id for group in groups]
    assert not set(kept_prompts) & {drop.id for drop in drops}
    assert len({row.id for row in kept}) == len(kept)
    assert all(kept_prompts.count(prompt_id) <= options["keep"] for prompt_id in kept_prompts)
    texts = [(prompt_id, row.completion) for prompt_id, row in zip(kept_prompts, kept, strict=True)]
    assert len(set(texts)) == len(texts)


@settings(max_examples=80, deadline=None)
@given(groups=groups_of_candidates(), pair_options=PAIR_OPTIONS, best_options=BEST_OPTIONS, shuffle_seed=st.integers(0, 99))
def test_neither_order_nor_company_changes_what_a_prompt_gives(
    groups: list[Group], pair_options: dict[str, Any], best_options: dict[str, Any], shuffle_seed: int
) -> None:
    shuffler = random.Random(shuffle_seed)
    shuffled = [shuffler.sample(list(group), len(group)) for group in shuffler.sample(groups, len(groups))]
    for select, options in ((build_pairs, pair_options), (best_of_n, best_options)):
        kept, drops = select(groups, scorer="rm", **options)
        again, dropped_again = select(shuffled, scorer="rm", **options)
        assert sorted(map(repr, kept)) == sorted(map(repr, again))
        assert sorted(map(repr, drops)) == sorted(map(repr, dropped_again))
        alone = [select([group], scorer="rm", **options) for group in groups]
        assert [row for rows, _ in alone for row in rows] == kept
        assert [drop for _, rows in alone for drop in rows] == drops


@settings(max_examples=50, deadline=None)
@given(groups=groups_of_candidates())
def test_grouping_puts_every_candidate_with_its_prompt(groups: list[Group]) -> None:
    rows = [candidate for group in groups for candidate in group]
    assert group_candidates(rows) == groups
    interleaved = sorted(rows, key=lambda row: row.candidate_index)
    assert sorted(map(repr, group_candidates(interleaved))) == sorted(map(repr, groups))


def test_non_finite_scores_never_rank() -> None:
    """A record cannot hold them; a candidate made otherwise still must not be chosen for one."""
    good = ScoredCandidate(
        prompt_id="p",
        candidate_index=0,
        prompt=[Message(role="user", content="x")],
        reference=None,
        completion="a",
        completion_token_ids=[],
        completion_tokens=0,
        finish_reason="stop",
        seed=0,
        scores={"rm": 1.0},
    )
    for value in (math.nan, math.inf, -math.inf):
        bad = good.model_copy(update={"candidate_index": 1, "completion": "b", "scores": {"rm": value}})
        pairs, drops = build_pairs([[good, bad]], scorer="rm")
        assert (pairs, [drop.drop_reason for drop in drops]) == ([], ["nonfinite_score"])
        assert [row.completion for row in best_of_n([[bad, good]], scorer="rm")[0]] == ["a"]
