"""Validates rows: every row becomes a record or one or more named problems, and none is lost silently.

Texts are never changed. One pass over the files checks each row by itself; then a comparison of the rows' hashes finds repeated
ids, repeated rows and contradictions. Memory does not grow with the number of rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from align.data.source import Source
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
from align.runtime.temporary import temporary_folder

__all__ = [
    "NEAR_DUPLICATE_ROWS",
    "Collection",
    "Problem",
    "RecordChecks",
    "RowRules",
    "Summary",
    "collect_rows",
    "rules_of",
    "valid_rows",
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
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        validator = Validator(source, rules, Path(folder), on_problem=on_problem, near_duplicates=near_duplicates)
        validator.run(model_checks=model_checks, on_progress=on_progress, processes=processes)
        return validator.summary
