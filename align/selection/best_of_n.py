"""Best of n: the highest-scored completions of every prompt, to fine-tune on (rejection sampling)."""

from __future__ import annotations

from collections.abc import Sequence

from align.records import Drop, Instruction
from align.selection.candidate import Group, Ranked, different_texts, usable_candidates


def best_of_n(
    groups: Sequence[Group],
    *,
    scorer: str,
    keep: int = 1,
    min_score: float | None = None,
    keep_truncated: bool = False,
) -> tuple[list[Instruction], list[Drop]]:
    """Keep the `keep` best different completions of every prompt.

    Candidates without a finite score are left out. Equal scores are ordered by candidate_index, equal texts count once, and a
    prompt with fewer than `keep` good completions gives those it has.

    Args:
        groups: candidates by prompt, see `group_candidates`.
        scorer: name of the score that ranks; higher is better.
        keep: most completions per prompt, at least 1.
        min_score: a completion with a lower score is not kept.
        keep_truncated: use candidates that were cut at the token limit.
    Returns:
        Instructions in the order of the prompts, best first, with the id `prompt_id` (or `prompt_id/candidate_index` when
        `keep` > 1), and one drop for every prompt that gives none: truncated, nonfinite_score, too_few_candidates,
        below_min_score.
    Raises:
        StageError: if a candidate has no score by `scorer`.
        ValueError: if `keep` < 1 or a group does not hold exactly one prompt.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    kept: list[Instruction] = []
    drops: list[Drop] = []
    for group in groups:
        usable, too_few = usable_candidates(group, scorer=scorer, keep_truncated=keep_truncated)
        if not usable:
            drops.append(too_few)
            continue
        ranking = different_texts(sorted(usable, key=lambda item: (-item.score, item.index)))
        good = [item for item in ranking if min_score is None or item.score >= min_score][:keep]
        if not good:
            detail = f"best score {ranking[0].score:g}, min_score {min_score:g}"
            drops.append(Drop(id=group[0].prompt_id, drop_reason="below_min_score", detail=detail))
        kept.extend(_instruction(item, numbered=keep > 1) for item in good)
    return kept, drops


def _instruction(item: Ranked, *, numbered: bool) -> Instruction:
    candidate = item.candidate
    row_id = f"{candidate.prompt_id}/{candidate.candidate_index}" if numbered else candidate.prompt_id
    return Instruction(id=row_id, prompt=candidate.prompt, completion=candidate.completion)
