"""The candidates of one prompt, from records or from files, in the form that selection works on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from align.config.reference import FieldPath
from align.config.row_need import RowNeed
from align.errors import DataError, StageError
from align.records import ScoredCandidate

Group = Sequence[ScoredCandidate]
"""All candidates of one prompt."""

REMAKE = (
    "In your own files, give every prompt its own id and each of its candidates another candidate_index. "
    "If a stage made the rows, remove its result and run it again."
)


class PromptCandidates(NamedTuple):
    """Candidates of one prompt, in lists by candidate."""

    prompt_id: str
    prompt: Any
    """Text, which is one user message, or messages: records, or mappings with role and content."""
    indices: list[int]
    """candidate_index; empty where the file has none."""
    texts: list[str]
    truncated: list[bool]
    """Whether the candidate was cut at the token limit."""
    scores: list[list[float | None]]
    """One list per scorer, in the selector's order; None or a number that is not finite where there is no score."""

    def extend(self, other: PromptCandidates) -> None:
        """Add further candidates of the same prompt to the lists."""
        if other.prompt != self.prompt:
            raise two_prompts(self.prompt_id)
        if bool(other.indices) != bool(self.indices):
            raise DataError(
                f"prompt {self.prompt_id!r}: only some of the candidates here have a candidate_index",
                hint="Give all rows one, or none.",
            )
        # In place: a prompt of many parts would otherwise be copied once per part.
        self.indices.extend(other.indices)
        self.texts.extend(other.texts)
        self.truncated.extend(other.truncated)
        for column, more in zip(self.scores, other.scores, strict=True):
            column.extend(more)

    def by_index(self) -> PromptCandidates:
        """The same, sorted by candidate_index; without one, candidates are numbered from 0 in their order.

        Raises:
            StageError: if there is one candidate_index twice.
        """
        # Everything after this relies on the order: of equal scores, the lower candidate_index comes first.
        indices = self.indices or list(range(len(self.texts)))
        order = sorted(range(len(indices)), key=indices.__getitem__)
        for first, second in pairwise(order):
            if indices[first] == indices[second]:
                raise StageError(f"prompt {self.prompt_id!r} has candidate {indices[first]} twice", hint=REMAKE)
        return PromptCandidates(
            self.prompt_id,
            self.prompt,
            [indices[place] for place in order],
            [self.texts[place] for place in order],
            [self.truncated[place] for place in order],
            [[column[place] for place in order] for column in self.scores],
        )


def joined(parts: Iterable[PromptCandidates]) -> Iterator[PromptCandidates]:
    """Merge neighbouring parts of one prompt.

    Raises:
        StageError: if two different prompts share an id. DataError: if only some candidates of a prompt have an index.
    """
    # Only neighbours are compared, so that one prompt at a time is in memory; `regroup` brings scattered rows together first.
    whole: PromptCandidates | None = None
    for part in parts:
        if whole is not None and part.prompt_id == whole.prompt_id:
            whole.extend(part)
            continue
        if whole is not None:
            yield whole
        whole = part
    if whole is not None:
        yield whole


def group_candidates(rows: Iterable[ScoredCandidate]) -> list[Group]:
    """Candidates by `prompt_id`, prompts in the order they are first seen, candidates by index.

    Prompts are joined by id, never by text: two prompts with the same text stay two.

    Raises:
        StageError: if a prompt has one candidate_index twice, or two different prompts share an id.
    """
    groups: dict[str, list[ScoredCandidate]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(row)
    for group in groups.values():
        # Two prompts under one id would give pairs whose sides answer different prompts.
        candidates_of(group, ())  # checks them
        group.sort(key=lambda row: row.candidate_index)
    return list(groups.values())


def candidates_of(group: Group, scorers: Sequence[str]) -> PromptCandidates:
    """A group of records with the scores by some scorers.

    Raises:
        StageError: if a candidate was never scored by one of the `scorers`, or as for `group_candidates`.
        ValueError: if the group is empty or holds more than one prompt.
    """
    if len({row.prompt_id for row in group}) != 1:
        raise ValueError("a group holds the candidates of exactly one prompt")
    for row in group:
        if missing := [scorer for scorer in scorers if scorer not in row.scores]:
            raise no_score(row.prompt_id, row.candidate_index, missing[0], row.scores)
    (whole,) = joined(
        PromptCandidates(
            row.prompt_id,
            row.prompt,
            [row.candidate_index],
            [row.completion],
            [row.finish_reason == "length"],
            [[row.scores[scorer]] for scorer in scorers],
        )
        for row in group
    )
    return whole.by_index()


def score_needs(rows: str, scorers: Mapping[FieldPath, str]) -> Iterator[RowNeed]:
    """What a selection reads in candidates, besides their texts.

    Args:
        rows: the stage's field that names them.
        scorers: name of a scorer by its path in the stage.
    """
    for path, scorer in scorers.items():
        lack, reason = partial(_lack_of_score, scorer), "candidates without one are left out"
        yield RowNeed(rows, path, f"scores.{scorer}", lack, reason, "select by another scorer", leaves_out=True)


def _lack_of_score(scorer: str, candidate: ScoredCandidate) -> str:
    score = candidate.scores[scorer]
    return "" if score is not None and math.isfinite(score) else f"no finite score by {scorer!r}"


def two_prompts(prompt_id: str) -> StageError:
    """The error of rows that have one prompt id and different prompts."""
    return StageError(f"two different prompts have the id {prompt_id!r}", hint=REMAKE)


def no_score(prompt_id: str, index: int, scorer: str, scores: Iterable[str]) -> StageError:
    """The error of a candidate that lacks the score to select by; `scores` are those it has."""
    return StageError(
        f"prompt {prompt_id!r}, candidate {index}: no score by {scorer!r}; it has {', '.join(scores) or 'none'}",
        hint="Name one of the scorers of the score stage.",
    )
