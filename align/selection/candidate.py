"""Groups of candidates, and which candidates of a group can be used at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from align.errors import StageError
from align.records import Drop, ScoredCandidate

Group = Sequence[ScoredCandidate]
"""All candidates of one prompt."""


@dataclass(frozen=True)
class Ranked:
    """A candidate that can be used, with the score that ranks it."""

    candidate: ScoredCandidate
    score: float

    @property
    def text(self) -> str:
        return self.candidate.completion

    @property
    def index(self) -> int:
        return self.candidate.candidate_index


def group_candidates(rows: Iterable[ScoredCandidate]) -> list[Group]:
    """Candidates by `prompt_id`, prompts in the order they are first seen, candidates by index.

    Prompts are joined by id, never by text: two prompts with the same text stay two.

    Raises:
        StageError: if a prompt has one candidate_index twice, or two different prompts share an id.
    """
    groups: dict[str, dict[int, ScoredCandidate]] = {}
    for row in rows:
        group = groups.setdefault(row.prompt_id, {})
        if row.candidate_index in group:
            raise StageError(f"prompt {row.prompt_id!r} has candidate {row.candidate_index} twice", hint=_REMAKE)
        if group and next(iter(group.values())).prompt != row.prompt:
            raise StageError(f"two different prompts have the id {row.prompt_id!r}", hint=_REMAKE)
        group[row.candidate_index] = row
    return [[group[index] for index in sorted(group)] for group in groups.values()]


_REMAKE = "The candidates were not made by one generate stage; remove the result and run again."


def usable_candidates(group: Group, *, scorer: str, keep_truncated: bool) -> tuple[list[Ranked], Drop]:
    """The candidates of a group that can be ranked, by candidate_index, and the drop to give should they be too few.

    Left out are candidates without a finite score, empty ones (there is nothing to imitate), and, unless `keep_truncated`, those
    that were cut at the token limit. The drop blames what removed the most.

    Raises:
        StageError: if a candidate was never scored by `scorer`.
        ValueError: if the group is empty or holds more than one prompt.
    """
    if not group or any(candidate.prompt_id != group[0].prompt_id for candidate in group):
        raise ValueError("a group holds the candidates of exactly one prompt")
    removed = {"truncated": 0, "nonfinite_score": 0, "too_few_candidates": 0}
    usable = []
    for candidate in sorted(group, key=lambda item: item.candidate_index):
        if scorer not in candidate.scores:
            raise StageError(
                f"prompt {candidate.prompt_id!r}, candidate {candidate.candidate_index}: no score by {scorer!r}; "
                f"it has {', '.join(candidate.scores) or 'none'}",
                hint="Name one of the scorers of the score stage.",
            )
        score = candidate.scores[scorer]
        if candidate.finish_reason == "length" and not keep_truncated:
            removed["truncated"] += 1
        elif score is None or not math.isfinite(score):
            removed["nonfinite_score"] += 1
        elif not candidate.completion.strip():
            removed["too_few_candidates"] += 1
        else:
            usable.append(Ranked(candidate, score))
    reason = max(removed, key=lambda name: removed[name]) if any(removed.values()) else "too_few_candidates"
    return usable, Drop(id=group[0].prompt_id, drop_reason=reason, detail=_account(group, removed, len(usable)))


def different_texts(ranking: Sequence[Ranked]) -> list[Ranked]:
    """The first of every text, in the order given."""
    first: dict[str, Ranked] = {}
    for item in ranking:
        first.setdefault(item.text, item)
    return list(first.values())


def _account(group: Group, removed: dict[str, int], left: int) -> str:
    told = {
        "truncated": "cut at the token limit",
        "nonfinite_score": "without a finite score",
        "too_few_candidates": "empty",
    }
    parts = [f"{count} {told[name]}" for name, count in removed.items() if count]
    return f"{left} of {len(group)} candidates can be used" + (f" ({', '.join(parts)})" if parts else "")


def require_rows(kept: Sequence[object], drops: Sequence[Drop], name: str) -> None:
    """Raise StageError when every prompt was dropped, with the reasons."""
    if kept:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(drop.drop_reason for drop in drops).most_common())
    raise StageError(
        f"{name}: none of the {len(drops)} prompts gave a row ({reasons})",
        hint="Look at the scored candidates; then lower min_margin or min_score, or sample more candidates.",
    )
