"""Validate rows: every row becomes a record or one or more named problems, and is never lost in silence.

Texts are kept exactly as they are. Rows are looked at in one pass over the files, which memory does not grow with; what only a
comparison of all rows can tell (ids given twice, repetitions, contradictions) comes at the end, from hashes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.row_checks import Action
from align.data.formats.raw import RawRow
from align.data.source import Source, SourceFile
from align.data.validation.block import Block
from align.data.validation.collection import Collection, collect_rows, valid_rows
from align.data.validation.problem import Problem
from align.data.validation.scan import RecordChecks
from align.data.validation.scanned import RowRules
from align.data.validation.survey import NEAR_DUPLICATE_ROWS, Progress, Summary, Survey, rules_of
from align.records import Drop, Record
from align.rows import DataKind

__all__ = [
    "NEAR_DUPLICATE_ROWS",
    "Collection",
    "Problem",
    "RecordChecks",
    "RowRules",
    "Summary",
    "Validated",
    "collect_rows",
    "rules_of",
    "valid_rows",
    "validate_rows",
    "validate_source",
]


def validate_source(
    source: Source,
    rules: RowRules,
    *,
    on_problem: Callable[[Problem], None] | None = None,
    model_checks: RecordChecks | None = None,
    near_duplicates: bool | None = None,
    on_progress: Progress | None = None,
    processes: int | None = None,
) -> Summary:
    """Look at every row of a source; keep none.

    Args:
        on_problem: told everything that is wrong, row by row in the order of the source; then what comparing rows found.
        model_checks: checks that need a model's tokenizer.
        near_duplicates: whether to search for them; None: up to `NEAR_DUPLICATE_ROWS` rows.
        processes: how many look at rows; None: as many as pay. The result does not depend on it.
    Raises:
        DataError, EnvironmentProblem: if a file cannot be read at all.
        RecipeError: if `columns` of a file maps fields that rows of this kind do not have.
    """
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        survey = Survey(source, rules, Path(folder), on_problem=on_problem, near_duplicates=near_duplicates)
        survey.run(model_checks=model_checks, on_progress=on_progress, processes=processes)
        return survey.summary


@dataclass(frozen=True)
class Validated:
    """What some rows hold, all of it in memory."""

    summary: Summary
    rows: list[Record]
    """Rows that can be used, in order."""
    dropped_rows: list[Drop]
    """The others, in order."""
    problems: list[Problem]
    """Everything wrong with those, in order."""

    @property
    def rows_in(self) -> int:
        """Rows found, good and bad."""
        return self.summary.rows_in

    @property
    def counts(self) -> dict[str, int]:
        """Findings about the rows in `rows`, by name."""
        return self.summary.counts()

    @property
    def notes(self) -> list[str]:
        """The findings in words."""
        return self.summary.notes()

    @property
    def columns_unused(self) -> list[str]:
        """Columns (and `field.key` of messages) that no field took."""
        return list(self.summary.unused)

    def drops(self) -> list[Drop]:
        """One drop per unusable row."""
        return self.dropped_rows

    def dropped(self) -> dict[str, int]:
        """Unusable rows by reason, most frequent first."""
        return dict(self.summary.dropped.most_common())


def validate_rows(
    raw: Iterable[RawRow],
    *,
    kind: DataKind[Any],
    columns: Mapping[str, str],
    max_characters: int,
    source_name: str,
    on_invalid: Action = "error",
    checks: Mapping[str, Action] | None = None,
) -> Validated:
    """Rows that are in memory, as `collect_rows` would have them from a file.

    Args:
        raw: rows or reading problems, each with its line number.
        columns: field of ours → column of the file, where the names differ.
        max_characters: a longer text is a problem, in Unicode code points.
        source_name: file name shown in messages.
    Raises:
        RecipeError: if `columns` names a field that rows of this kind do not have.
    """
    source = Source((SourceFile(Path(source_name), source_name, columns),), source_name)
    problems: list[Problem] = []
    rules = RowRules(kind, max_characters, on_invalid, checks or {})
    with collect_rows(source, rules, on_problem=problems.append, processes=1, blocks=[Block(0, list(raw))]) as collection:
        rows, drops = list(collection.records()), list(collection.drops())
    return Validated(collection.summary, rows, drops, sorted(problems, key=lambda problem: problem.seq))
