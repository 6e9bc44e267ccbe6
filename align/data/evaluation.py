"""Evaluation prompts, with which training data must not overlap."""

from __future__ import annotations

from collections.abc import Iterable

from align.config.inputs import DataInput
from align.data.quality.overlap import EvaluationIndex
from align.data.share import in_share
from align.data.source import Source
from align.errors import DataError


def evaluation_prompts(source: Source, spec: DataInput) -> list[tuple[str, str]]:
    """(id, text) of every usable prompt of a source.

    Raises:
        DataError: if there is none, or a file cannot be read.
    """
    from align.data.validation import valid_rows  # imports NumPy

    prompts = [(record.id, spec.row_kind.subject_text(record)) for record in valid_rows(source, spec) if in_share(spec, record)]
    if not prompts:
        raise DataError(f"{source.shown}: there is no prompt in it to compare with", hint="`align data validate` says why.")
    return prompts


def evaluation_index(sources: Iterable[tuple[Source, DataInput]]) -> EvaluationIndex:
    """An index of the prompts of all sources; with several sources, the source's name precedes each id."""
    listed = list(sources)
    # Ids are unique within one source only.
    several = len(listed) > 1
    return EvaluationIndex(
        (f"{source.shown}:{prompt_id}" if several else prompt_id, text)
        for source, spec in listed
        for prompt_id, text in evaluation_prompts(source, spec)
    )
