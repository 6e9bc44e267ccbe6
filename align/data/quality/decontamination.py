"""Which rows to take out of training data because they overlap evaluation prompts."""

from __future__ import annotations

from collections.abc import Iterable

from align.data.quality.overlap import EvaluationIndex
from align.records import Drop

OVERLAPS_EVALUATION = "overlaps_evaluation"
"""`drop_reason` of such a row."""


def evaluation_overlap(row_id: str, texts: Iterable[str], index: EvaluationIndex) -> Drop | None:
    """Why a row must leave: the evaluation prompt that one of its messages or completions overlaps; None if it may stay."""
    overlap = index.overlap(*texts)
    if overlap is None:
        return None
    detail = f"has {100 * overlap.share:.0f} % of the evaluation prompt {overlap.prompt_id!r}, such as {overlap.ngram!r}"
    return Drop(id=row_id, drop_reason=OVERLAPS_EVALUATION, detail=detail)
