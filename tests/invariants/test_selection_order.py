"""What selection must keep whatever it is given: no prompt is lost, no order matters, no pair is a tie."""

from __future__ import annotations

import math
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from align.config.selection import POLICY_OPTIONS
from align.records import Drop, Preference
from align.selection import Group, best_of_n, build_pairs, group_candidates
from align.selection.policy import POLICIES, SEVERAL_PAIRS
from align.testing import scored_candidate

SCORES = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 2.0]) | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def groups_of_candidates(draw: st.DrawFn) -> list[Group]:
    groups: list[Group] = []
    for number in range(draw(st.integers(0, 5))):
        group = [
            scored_candidate(
                completion=draw(st.sampled_from(["", "a", "b", "c", "dd"])),
                index=index,
                prompt_id=f"p{number}",
                prompt="the same text under every id",
                finish_reason=draw(st.sampled_from(["stop", "stop", "stop", "length"])),
                scores={"rm": draw(SCORES), "gold": draw(SCORES)},
            )
            for index in range(draw(st.integers(1, 5)))
        ]
        groups.append(group)
    return groups


VALUES = {"max_margin": 4.0, "sigmas": 1.0, "k": 2, "max_length_ratio": 1.5, "rso_beta": 0.5, "rso_accept": 3}


@st.composite
def pair_options(draw: st.DrawFn) -> dict[str, Any]:
    """Options of `build_pairs` that fit together."""
    policy = draw(st.sampled_from(list(POLICIES)))
    options: dict[str, Any] = {
        "policy": policy,
        "min_margin": draw(st.sampled_from([0.0, 0.4, 3.0])),
        "seed": draw(st.integers(0, 3)),
        "keep_truncated": draw(st.booleans()),
    }
    for option, of in POLICY_OPTIONS.items():
        if of == policy and (draw(st.booleans()) or option == "max_margin"):
            options[option] = VALUES[option]
    if draw(st.booleans()):
        options |= {"scorers": {"rm": 1.0, "gold": 0.5}, "combine": draw(st.sampled_from(["weighted_sum", "z_scores", "vote"]))}
        options["min_agreement"] = draw(st.sampled_from([None, 0.5, 1.0]))
    else:
        options["scorer"] = "rm"
    if draw(st.booleans()):
        options["length_penalty"] = draw(st.sampled_from([10.0, 200.0]))
        options["on_length_flip"] = draw(st.sampled_from(["drop", "keep"]))
    return options


BEST_OPTIONS = st.fixed_dictionaries(
    {
        "scorer": st.just("rm"),
        "keep": st.integers(1, 4),
        "min_score": st.none() | st.sampled_from([0.0, 1.0]),
        "keep_truncated": st.booleans(),
    }
)


def prompt_of(row: Preference | Drop) -> str:
    return row.id.split("/")[0]


@settings(max_examples=150, deadline=None)
@given(groups=groups_of_candidates(), options=pair_options())
def test_every_prompt_is_pairs_or_drops(groups: list[Group], options: dict[str, Any]) -> None:
    pairs, drops = build_pairs(groups, **options)
    rows: list[Preference | Drop] = [*pairs, *drops]
    ids = [row.id for row in rows]
    assert len(set(ids)) == len(ids)
    assert {prompt_of(row) for row in rows} == {group[0].prompt_id for group in groups}
    assert all(drop.drop_reason and drop.detail for drop in drops)
    if options["policy"] not in SEVERAL_PAIRS:
        assert sorted(ids) == [group[0].prompt_id for group in groups]


@settings(max_examples=150, deadline=None)
@given(groups=groups_of_candidates(), options=pair_options())
def test_a_pair_is_two_different_candidates_of_its_own_prompt(groups: list[Group], options: dict[str, Any]) -> None:
    of_prompt = {group[0].prompt_id: group for group in groups}
    kept_flips = options.get("on_length_flip") == "keep"
    for pair in build_pairs(groups, **options)[0]:
        assert pair.chosen_score is not None
        assert pair.rejected_score is not None
        assert pair.chosen_score > pair.rejected_score or kept_flips
        price = options.get("length_penalty", 0.0) / 100
        high, low = pair.chosen_score - price * len(pair.chosen), pair.rejected_score - price * len(pair.rejected)
        assert high > low
        assert high - low >= options["min_margin"]
        assert high - low <= options.get("max_margin", math.inf)
        assert pair.chosen.strip()
        assert pair.rejected.strip()
        assert pair.chosen != pair.rejected
        usable = [
            candidate
            for candidate in of_prompt[prompt_of(pair)]
            if None not in [candidate.scores[name] for name in options.get("scorers", {"rm": 1})]
            and (options["keep_truncated"] or candidate.finish_reason == "stop")
        ]
        assert {pair.chosen, pair.rejected} <= {candidate.completion for candidate in usable}
        if "scorer" in options:
            scored = {(candidate.completion, candidate.scores["rm"]) for candidate in usable}
            assert {(pair.chosen, pair.chosen_score), (pair.rejected, pair.rejected_score)} <= scored


@settings(max_examples=80, deadline=None)
@given(groups=groups_of_candidates(), options=BEST_OPTIONS)
def test_every_prompt_is_kept_or_dropped(groups: list[Group], options: dict[str, Any]) -> None:
    kept, drops = best_of_n(groups, **options)
    kept_prompts = [row.id.split("/")[0] for row in kept]
    assert sorted(set(kept_prompts) | {drop.id for drop in drops}) == [group[0].prompt_id for group in groups]
    assert not set(kept_prompts) & {drop.id for drop in drops}
    assert len({row.id for row in kept}) == len(kept)
    assert all(kept_prompts.count(prompt_id) <= options["keep"] for prompt_id in kept_prompts)
    texts = [(prompt_id, row.completion) for prompt_id, row in zip(kept_prompts, kept, strict=True)]
    assert len(set(texts)) == len(texts)


@settings(max_examples=80, deadline=None)
@given(groups=groups_of_candidates(), for_pairs=pair_options(), for_best=BEST_OPTIONS, shuffle_seed=st.integers(0, 99))
def test_neither_order_nor_company_changes_what_a_prompt_gives(
    groups: list[Group], for_pairs: dict[str, Any], for_best: dict[str, Any], shuffle_seed: int
) -> None:
    shuffler = random.Random(shuffle_seed)
    shuffled = [shuffler.sample(list(group), len(group)) for group in shuffler.sample(groups, len(groups))]
    for select, options in ((build_pairs, for_pairs), (best_of_n, for_best)):
        kept, drops = select(groups, **options)
        again, dropped_again = select(shuffled, **options)
        assert sorted(map(repr, kept)) == sorted(map(repr, again))
        assert sorted(map(repr, drops)) == sorted(map(repr, dropped_again))
        alone = [select([group], **options) for group in groups]
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
    good = scored_candidate({"rm": 1.0}, "a")
    for value in (math.nan, math.inf, -math.inf):
        bad = good.model_copy(update={"candidate_index": 1, "completion": "b", "scores": {"rm": value}})
        pairs, drops = build_pairs([[good, bad]], scorer="rm")
        assert (pairs, [drop.drop_reason for drop in drops]) == ([], ["nonfinite_score"])
        assert [row.completion for row in best_of_n([[bad, good]], scorer="rm")[0]] == ["a"]
