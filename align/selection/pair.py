"""Preference pairs from scored candidates: two completions of a prompt, the better one chosen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from align.records import Drop, Preference
from align.selection.candidate import Group, Ranked, different_texts, usable_candidates
from align.selection.rejection import accept_candidates

PairPolicy = Literal["max_min", "max_random", "best_vs_second", "rso"]
RSO_BETA = 0.5
RSO_ACCEPT = 2


def build_pairs(
    groups: Sequence[Group],
    *,
    scorer: str,
    policy: PairPolicy = "max_min",
    min_margin: float = 0.0,
    seed: int = 0,
    keep_truncated: bool = False,
    rso_beta: float | None = None,
    rso_accept: int | None = None,
) -> tuple[list[Preference], list[Drop]]:
    """At most one pair per prompt; the chosen score is always strictly the higher one and the texts always differ.

    Except for `rso`, the chosen completion is the best (of equal ones, that with the lowest candidate_index). The rejected one
    is, among the candidates with a lower score and another text:
    `max_min` the worst, `best_vs_second` the best of them, `max_random` any one, drawn by a generator seeded with
    (`seed`, prompt_id), so that neither the order nor the presence of other prompts changes it.

    `rso` is statistical rejection sampling (`accept_candidates`): of the different texts `rso_accept` are accepted, and two of
    these, drawn at random by such a generator, make the pair; the chosen one has the higher score. Equal texts count once, with
    their best score.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        scorer: name of the score that ranks; higher is better.
        min_margin: a pair whose scores are closer than this is dropped; 0 or more.
        keep_truncated: use candidates that were cut at the token limit.
        rso_beta: temperature of acceptance in the unit of the scores, above 0; 0.5 when not given. For `rso` only.
        rso_accept: how many are accepted before two are drawn, 2 or more; 2 when not given. For `rso` only.
    Returns:
        Pairs in the order of the prompts, with the id `prompt_id`, and one drop for every prompt that gives none:
        truncated, nonfinite_score, too_few_candidates (fewer than two remain), identical (all texts are equal),
        tie (all scores are equal, or those of the two that `rso` drew), margin_below_min.
    Raises:
        StageError: if a candidate has no score by `scorer`.
        ValueError: if `min_margin` < 0, the policy is unknown, an option of `rso` is out of bounds or given with another policy,
            or a group does not hold exactly one prompt.
    """
    if not min_margin >= 0:
        raise ValueError(f"min_margin must be 0 or more, not {min_margin}")
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, not {policy!r}")
    if policy != "rso" and (rso_beta is not None or rso_accept is not None):
        raise ValueError(f"rso_beta and rso_accept must be given with the policy rso only, not {policy}")
    if rso_beta is not None and not 0 < rso_beta < math.inf:
        raise ValueError(f"rso_beta must be a number above 0, not {rso_beta}")
    if rso_accept is not None and rso_accept < 2:
        raise ValueError(f"rso_accept must be at least 2, not {rso_accept}")
    draw = _Draw(seed, RSO_BETA if rso_beta is None else rso_beta, RSO_ACCEPT if rso_accept is None else rso_accept)
    pairs: list[Preference] = []
    drops: list[Drop] = []
    for group in groups:
        usable, too_few = usable_candidates(group, scorer=scorer, keep_truncated=keep_truncated)
        outcome = too_few if len(usable) < 2 else _pair_of(usable, policy, min_margin, draw)
        if isinstance(outcome, Drop):
            drops.append(outcome)
        else:
            pairs.append(outcome)
    return pairs, drops


class _Draw(NamedTuple):
    """What policies that draw need."""

    seed: int
    rso_beta: float
    rso_accept: int

    def generator(self, prompt_id: str) -> random.Random:
        return random.Random(f"{self.seed}:{prompt_id}")


def _pair_of(usable: Sequence[Ranked], policy: PairPolicy, min_margin: float, draw: _Draw) -> Preference | Drop:
    """The pair of one prompt, of whose candidates at least two can be used."""
    prompt_id = usable[0].candidate.prompt_id
    ranking = sorted(usable, key=lambda item: (-item.score, item.index))
    best = ranking[0]
    if all(item.text == best.text for item in ranking):
        return Drop(id=prompt_id, drop_reason="identical", detail=f"all {len(ranking)} candidates are the same text")
    if ranking[-1].score == best.score:
        return Drop(id=prompt_id, drop_reason="tie", detail=f"all {len(ranking)} candidates score {best.score:g}")
    drawn = _POLICIES[policy](ranking, draw)
    if isinstance(drawn, Drop):
        return drawn
    chosen, rejected = drawn
    margin = chosen.score - rejected.score
    if margin < min_margin:
        detail = f"{chosen.score:g} - {rejected.score:g} = {margin:g}, min_margin {min_margin:g}"
        return Drop(id=prompt_id, drop_reason="margin_below_min", detail=detail)
    return Preference(
        id=prompt_id,
        prompt=chosen.candidate.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_score=chosen.score,
        rejected_score=rejected.score,
    )


Drawn = tuple[Ranked, Ranked] | Drop


def _against_best(choose: Callable[[Sequence[Ranked], _Draw], Ranked]) -> Callable[[Sequence[Ranked], _Draw], Drawn]:
    """The best of a ranking against one of those with a lower score and another text."""

    def draw_pair(ranking: Sequence[Ranked], draw: _Draw) -> Drawn:
        best = ranking[0]
        others = [item for item in ranking if item.score < best.score and item.text != best.text]
        if not others:
            detail = f"every candidate that scores below {best.score:g} is the same text as the best"
            return Drop(id=best.candidate.prompt_id, drop_reason="identical", detail=detail)
        return best, choose(others, draw)

    return draw_pair


def _worst(others: Sequence[Ranked], draw: _Draw) -> Ranked:
    """The lowest score; of equal ones the lowest candidate_index."""
    return min(others, key=lambda item: (item.score, item.index))


def _second(others: Sequence[Ranked], draw: _Draw) -> Ranked:
    """The highest score; `others` are in order."""
    return others[0]


def _any(others: Sequence[Ranked], draw: _Draw) -> Ranked:
    """One different text at random, each as likely as the others, however often it was sampled."""
    return draw.generator(others[0].candidate.prompt_id).choice(different_texts(others))


def _rejection_sampled(ranking: Sequence[Ranked], draw: _Draw) -> Drawn:
    """Two of the accepted candidates at random, the higher score first."""
    # In the order they were sampled, as in the paper: the order decides who is left when enough are accepted.
    different = sorted(different_texts(ranking), key=lambda item: item.index)
    prompt_id = ranking[0].candidate.prompt_id
    generator = draw.generator(prompt_id)
    scores = [item.score for item in different]
    accepted = accept_candidates(scores, beta=draw.rso_beta, count=draw.rso_accept, generator=generator)
    first, second = (different[index] for index in generator.sample(accepted, 2))
    if first.score == second.score:
        return Drop(id=prompt_id, drop_reason="tie", detail=f"the two that were drawn score {first.score:g}")
    return (first, second) if first.score > second.score else (second, first)


_POLICIES: Mapping[PairPolicy, Callable[[Sequence[Ranked], _Draw], Drawn]] = {
    "max_min": _against_best(_worst),
    "max_random": _against_best(_any),
    "best_vs_second": _against_best(_second),
    "rso": _rejection_sampled,
}
