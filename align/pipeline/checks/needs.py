"""What stages read in rows beyond their kind, against the first rows themselves."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from align.config.names import listing
from align.config.row_need import RowNeed
from align.pipeline.checks.finding import Action, Finding
from align.pipeline.checks.limits import Rows
from align.pipeline.checks.rows import HEAD_ROWS
from align.pipeline.plan import Plan, PlannedStage
from align.records import ScoredCandidate, place_of
from align.rows import ROW_KINDS
from align.rows.kind import OTHER_COLUMNS
from align.selection.files.open import open_file
from align.selection.files.reader import SCORE_PREFIX, FileRange, files_of
from align.store.artifact import ROWS_NAME, Artifact, read_rows
from align.written import mapped_columns


def needs_of(plan: Plan, stage: PlannedStage) -> Iterator[tuple[RowNeed, str]]:
    """What a stage needs of rows that come from an input, with the name of that input."""
    stages = {each.name: each for each in plan.stages}
    for need in stage.node.config.row_needs():  # type: ignore[attr-defined]  # a StageConfig
        name = getattr(stage.node.config, need.rows)
        while name in stages:
            config = stages[name].node.config
            carried = config.carries.get(need.field.partition(".")[0])  # type: ignore[attr-defined]
            name = None if carried is None else getattr(config, carried)
        if name is not None:
            yield need, name


def check_need(stage: str, where: str, need: RowNeed, rows: Rows, unused: Sequence[str] = ()) -> list[Finding]:
    """Whether the rows have what a stage reads.

    Args:
        where: place in the recipe of the setting that reads.
        unused: columns of the file that no field takes.
    """
    lacks = [(record, lack) for record in rows.records if (lack := need.lack(record))]
    total, found = len(rows.records), []
    for lack, count in Counter(lack for _, lack in lacks).items():
        first = next(record for record, what in lacks if what == lack)
        # Where all lack it, a line says nothing more.
        line = getattr(first, "line", None) if count < total else None
        place = f" (the first: {place_of(first.file or rows.source, line)})" if line is not None else ""
        have = "has" if count == 1 else "have"
        of = f"{count:,} of {'' if rows.is_whole else 'the first '}{total:,} rows of {rows.source}"
        text = f"{where}: {of} {have} {lack}{place}; {need.reason}"
        every = count == total
        is_certain = (every and rows.is_whole) if need.leaves_out else (every or rows.keeps_all)
        action: Action = "refuse" if is_certain else "warn"
        found.append(Finding(stage, text, _advice(need, unused if every else ()), action, "data"))
    return found


def _advice(need: RowNeed, unused: Sequence[str]) -> str:
    if not unused or need.field.startswith(OTHER_COLUMNS):
        return f"Fill it in these rows, or {need.alternative}."
    there = unused[0] if len(unused) == 1 else "…"
    named = "" if len(unused) == 1 else f" (unused: {listing(unused)})"
    return f"If a column holds it, name it at the input, {mapped_columns({need.field: there})}{named}; or {need.alternative}."


def artifact_rows(artifact: Artifact, need: RowNeed) -> Rows:
    """The first rows of a result.

    Raises:
        AlignError: if a file cannot be read, or has no such column.
    """
    records: list[Any] = []
    if need.field.startswith(SCORE_PREFIX):
        records = list(itertools.islice(_scores(artifact, need.field.removeprefix(SCORE_PREFIX)), HEAD_ROWS + 1))
    elif artifact.kind in ROW_KINDS:
        read = read_rows(artifact.path / ROWS_NAME, ROW_KINDS[artifact.kind].record)
        records = list(itertools.islice(read, HEAD_ROWS + 1))
    is_whole = len(records) <= HEAD_ROWS
    return Rows(artifact.kind, records[:HEAD_ROWS], artifact.where(None), is_whole, keeps_all=True)


def _scores(artifact: Artifact, scorer: str) -> Iterator[ScoredCandidate]:
    """Candidates with the score alone."""
    for file in files_of(artifact):
        for part in open_file(file).parts(FileRange(file, 0, sys.maxsize, 0), [scorer]):
            for score in part.scores[0]:
                yield ScoredCandidate.model_construct(prompt_id=part.prompt_id, scores={scorer: score})
