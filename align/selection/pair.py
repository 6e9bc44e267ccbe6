"""Preference pairs from scored candidates: the best completion of a prompt against another one of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from align.records import Drop, Preference
from align.selection.candidate import Group, Ranked, usable_candidates

PairPolicy = Literal["max_min", "max_random", "best_vs_second"]


def build_pairs(
    groups: Sequence[Group],
    *,
    scorer: str,
    policy: PairPolicy = "max_min",
    min_margin: float = 0.0,
    seed: int = 0,
    keep_truncated: bool = False,
) -> tuple[list[Preference], list[Drop]]:
    """At most one pair per prompt; the chosen score is always strictly the higher one and the texts always differ.

    The chosen completion is the best (of equal ones, that with the lowest candidate_index). The rejected one is, among the
    candidates with a lower score and another text:
    `max_min` the worst, `best_vs_second` the best of them, `max_random` any one, drawn by a generator seeded with
    (`seed`, prompt_id), so that neither the order nor the presence of other prompts changes it.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        scorer: name of the score that ranks; higher is better.
        min_margin: a pair whose scores are closer than this is dropped; 0 or more.
        keep_truncated: use candidates that were cut at the token limit.
    Returns:
        Pairs in the order of the prompts, with the id `prompt_id`, and one drop for every prompt that gives none:
        truncated, nonfinite_score, too_few_candidates (fewer than two remain), identical (all texts are equal),
        tie (all scores are equal), margin_below_min.
    Raises:
        StageError: if a candidate has no score by `scorer`.
        ValueError: if `min_margin` < 0, the policy is unknown, or a group does not hold exactly one prompt.
    """
    if not min_margin >= 0:
        raise ValueError(f"min_margin must be 0 or more, not {min_margin}")
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, not {policy!r}")
    pairs: list[Preference] = []
    drops: list[Drop] = []
    for group in groups:
        usable, too_few = usable_candidates(group, scorer=scorer, keep_truncated=keep_truncated)
        outcome = too_few if len(usable) < 2 else _pair_of(usable, policy, min_margin, seed)
        if isinstance(outcome, Drop):
            drops.append(outcome)
        else:
            pairs.append(outcome)
    return pairs, drops


def _pair_of(usable: Sequence[Ranked], policy: PairPolicy, min_margin: float, seed: int) -> Preference | Drop:
    """The pair of one prompt, of whose candidates at least two can be used."""
    prompt_id = usable[0].candidate.prompt_id
    ranking = sorted(usable, key=lambda item: (-item.score, item.index))
    best = ranking[0]
    if all(item.text == best.text for item in ranking):
        return Drop(id=prompt_id, drop_reason="identical", detail=f"all {len(ranking)} candidates are the same text")
    if ranking[-1].score == best.score:
        return Drop(id=prompt_id, drop_reason="tie", detail=f"all {len(ranking)} candidates score {best.score:g}")
    others = [item for item in ranking if item.score < best.score and item.text != best.text]
    if not others:
        detail = f"every candidate that scores below {best.score:g} is the same text as the best"
        return Drop(id=prompt_id, drop_reason="identical", detail=detail)
    rejected = _POLICIES[policy](others, random.Random(f"{seed}:{prompt_id}"))
    margin = best.score - rejected.score
    if margin < min_margin:
        detail = f"{best.score:g} - {rejected.score:g} = {margin:g}, min_margin {min_margin:g}"
        return Drop(id=prompt_id, drop_reason="margin_below_min", detail=detail)
    return Preference(
        id=prompt_id,
        prompt=best.candidate.prompt,
        chosen=best.text,
        rejected=rejected.text,
        chosen_score=best.score,
        rejected_score=rejected.score,
    )


def _worst(others: Sequence[Ranked], generator: random.Random) -> Ranked:
    """The lowest score; of equal ones the lowest candidate_index."""
    return min(others, key=lambda item: (item.score, item.index))


def _second(others: Sequence[Ranked], generator: random.Random) -> Ranked:
    """The highest score; `others` are in order."""
    return others[0]


def _any(others: Sequence[Ranked], generator: random.Random) -> Ranked:
    """One different text at random, each as likely as the others, however often it was sampled."""
    first: dict[str, Ranked] = {}
    for item in others:
        first.setdefault(item.text, item)
    return generator.choice(list(first.values()))


_POLICIES: Mapping[PairPolicy, Callable[[Sequence[Ranked], random.Random], Ranked]] = {
    "max_min": _worst,
    "max_random": _any,
    "best_vs_second": _second,
}
