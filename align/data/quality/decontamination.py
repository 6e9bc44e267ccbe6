"""Which rows to take out of training data because they overlap evaluation prompts."""

from __future__ import annotations

from collections.abc import Iterator

from align.data.quality.overlap import EvaluationIndex
from align.records import Drop, Instruction, Preference, Prompt, Record, TextRow

OVERLAPS_EVALUATION = "overlaps_evaluation"
"""`drop_reason` of such a row."""


def evaluation_overlap(record: Record, index: EvaluationIndex) -> Drop | None:
    """Why a row must leave: the evaluation prompt that one of its messages or completions overlaps; None if it may stay."""
    overlap = index.overlap(*texts_of(record))
    if overlap is None:
        return None
    detail = f"has {100 * overlap.share:.0f} % of the evaluation prompt {overlap.prompt_id!r}, such as {overlap.ngram!r}"
    return Drop(id=record.id, drop_reason=OVERLAPS_EVALUATION, detail=detail)


def texts_of(record: Record) -> Iterator[str]:
    """Every message and completion of a row, each on its own."""
    if isinstance(record, TextRow):
        yield record.text
        return
    assert isinstance(record, (Instruction, Preference, Prompt))  # the four kinds of user data
    yield from (message.content for message in record.prompt)
    if isinstance(record, Instruction):
        yield record.completion
    elif isinstance(record, Preference):
        yield from (record.chosen, record.rejected)
