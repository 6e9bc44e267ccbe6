"""Validates rows: every row becomes a record or one or more named problems, and none is lost silently.

Texts are never changed. One pass over the files checks each row by itself; then a comparison of the rows' hashes finds repeated
ids, repeated rows and contradictions. Memory does not grow with the number of rows.
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
from align.data.validation.collection import (
    NEAR_DUPLICATE_ROWS,
    Collection,
    Progress,
    Validator,
    collect_rows,
    valid_rows,
)
from align.data.validation.scan import RecordChecks, RowRules, rules_of
from align.data.validation.summary import Problem, Summary
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
    """Check every row of a source; keep none.

    Args:
        on_problem: called with every problem: first those of single rows, in the order of the source, then those that the
            comparison finds.
        model_checks: checks that need a model's tokenizer.
        near_duplicates: whether to search for them; None: up to `NEAR_DUPLICATE_ROWS` rows.
        processes: number of processes; None: as many as save time. The result does not depend on it.
    Raises:
        DataError, EnvironmentProblem: if a file cannot be read at all.
        RecipeError: if `columns` of a file maps fields that rows of this kind do not have.
    """
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        validator = Validator(source, rules, Path(folder), on_problem=on_problem, near_duplicates=near_duplicates)
        validator.run(model_checks=model_checks, on_progress=on_progress, processes=processes)
        return validator.summary


@dataclass(frozen=True)
class Validated:
    """The result of validating rows in memory."""

    summary: Summary
    rows: list[Record]
    """Usable rows, in order."""
    drops: list[Drop]
    """Dropped rows, in order."""
    problems: list[Problem]
    """All problems of the dropped rows, in order."""


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
    """Validate rows that are in memory, as `collect_rows` does with those of a file.

    Args:
        raw: rows or reading problems, each with its line number.
        columns: align's field → column of the file, where the names differ.
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
