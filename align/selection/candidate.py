"""Groups of candidate records, and the plain lists that selection works on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from align.errors import StageError
from align.records import Drop, ScoredCandidate
from align.selection.ranking import PromptCandidates

Group = Sequence[ScoredCandidate]
"""All candidates of one prompt."""

REMAKE = (
    "In files of yours, give every prompt an id of its own and its candidates different candidate_index numbers. "
    "What a stage made, remove and make again."
)


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
            raise candidate_twice(row.prompt_id, row.candidate_index)
        if group and next(iter(group.values())).prompt != row.prompt:
            raise two_prompts(row.prompt_id)
        group[row.candidate_index] = row
    return [[group[index] for index in sorted(group)] for group in groups.values()]


def candidate_twice(prompt_id: str, index: int) -> StageError:
    return StageError(f"prompt {prompt_id!r} has candidate {index} twice", hint=REMAKE)


def two_prompts(prompt_id: str) -> StageError:
    return StageError(f"two different prompts have the id {prompt_id!r}", hint=REMAKE)


def no_score(prompt_id: str, index: int, scorer: str, scores: Iterable[str]) -> StageError:
    return StageError(
        f"prompt {prompt_id!r}, candidate {index}: no score by {scorer!r}; it has {', '.join(scores) or 'none'}",
        hint="Name one of the scorers of the score stage.",
    )


def in_columns(group: Group, scorers: Sequence[str]) -> PromptCandidates:
    """The candidates of one prompt as plain lists, by rising candidate_index.

    Raises:
        StageError: if a candidate was never scored by one of the `scorers`.
        ValueError: if the group is empty or holds more than one prompt.
    """
    if not group or any(candidate.prompt_id != group[0].prompt_id for candidate in group):
        raise ValueError("a group holds the candidates of exactly one prompt")
    rising = sorted(group, key=lambda item: item.candidate_index)
    for candidate in rising:
        for scorer in scorers:
            if scorer not in candidate.scores:
                raise no_score(candidate.prompt_id, candidate.candidate_index, scorer, candidate.scores)
    return PromptCandidates(
        group[0].prompt_id,
        [candidate.candidate_index for candidate in rising],
        [candidate.completion for candidate in rising],
        [candidate.finish_reason == "length" for candidate in rising],
        [[candidate.scores[scorer] for candidate in rising] for scorer in scorers],
    )


def require_rows(kept: Sequence[object], drops: Sequence[Drop], name: str) -> None:
    """Raise StageError when every prompt was dropped, with the reasons."""
    require_some(len(kept), Counter(drop.drop_reason for drop in drops), name)


def require_some(num_kept: int, dropped: Mapping[str, int], name: str) -> None:
    """Raise StageError when nothing was kept, with the reasons."""
    if num_kept:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(dropped).most_common())
    raise StageError(
        f"{name}: none of the {sum(dropped.values())} prompts gave a row ({reasons})",
        hint="Look at the scored candidates; then lower min_margin or min_score, or sample more candidates.",
    )
