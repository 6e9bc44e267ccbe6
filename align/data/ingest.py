"""Bring a recipe's data input into the store: read, validate, write the rows and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from align.config.inputs import DataInput
from align.data.hub import fetch_dataset_rows
from align.data.reader import file_format, read_raw
from align.data.validation import Validated, validate_rows
from align.errors import DataError
from align.store.artifact import DROPS_NAME, ROWS_NAME, write_rows


@dataclass(frozen=True)
class Ingested:
    """What became of an input."""

    rows_in: int
    """Rows found."""
    rows_out: int
    """Rows written."""
    dropped: dict[str, int]
    """Rows left out, by `drop_reason`; rows_in = rows_out + their sum."""
    findings: dict[str, int]
    """What should be known about the rows written, by name (see `align.data.finding`)."""
    notes: list[str]
    """The findings in words, one a line."""
    source: str
    """The file, or the hub id with its commit."""


def ingest(spec: DataInput, path: Path | None, shown_name: str, entry_folder: Path) -> Ingested:
    """Write `rows.jsonl` and `drops.jsonl` into `entry_folder`.

    Args:
        spec: the input as the recipe has it.
        path: the local file; None for a hub dataset.
        shown_name: how messages call the file, as the user wrote it.
        entry_folder: existing folder of the store entry.
    Raises:
        DataError: if a row cannot be used and `on_invalid` is error, if no row can be used, or if the file ends before its end
            (cut short, damaged): nobody would know how many rows are missing. Nothing is written then.
        EnvironmentProblem, RecipeError: see `fetch_dataset_rows`.
    """
    source, result = _validated(spec, path, shown_name)
    cut_short = any(problem.ends_file for problem in result.problems)
    if not result.rows or cut_short or (result.problems and spec.on_invalid == "error"):
        raise invalid_rows(result)
    write_rows(entry_folder / ROWS_NAME, result.rows)
    write_rows(entry_folder / DROPS_NAME, result.drops())
    return Ingested(
        rows_in=result.rows_in,
        rows_out=len(result.rows),
        dropped=result.dropped(),
        findings=result.counts,
        notes=result.notes,
        source=source,
    )


def _validated(spec: DataInput, path: Path | None, shown_name: str) -> tuple[str, Validated]:
    if spec.dataset is not None and spec.split is not None:
        commit, rows = fetch_dataset_rows(spec.dataset, spec.split, spec.revision)
        source = f"{spec.dataset}@{commit or spec.revision or 'cached'}:{spec.split}"
        columns: Mapping[str, str] = spec.columns
    elif path is not None:
        source, rows, columns = shown_name, read_raw(path), default_columns(spec, path)
    else:
        raise TypeError("a data input without a dataset needs a path")
    return source, validate_rows(
        rows, kind=spec.kind, columns=columns, max_characters=spec.max_characters, source_name=shown_name
    )


def default_columns(spec: DataInput, path: Path) -> Mapping[str, str]:
    """The column mapping of a file; the lines of a .txt file are prompts where prompts are wanted."""
    if spec.kind == "prompts" and not spec.columns and file_format(path) == ".txt":
        return {"prompt": "text"}
    return spec.columns


def invalid_rows(result: Validated) -> DataError:
    """The error for a file that cannot be used: numbers by reason first, then every problem on its line."""
    name, dropped = result.source_name, result.dropped()
    if not result.rows_in:
        return DataError(f"{name}: there is no row in it", hint="Check the path; is the file empty?")
    bad = sum(dropped.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
    summary = f"{name}: {bad:,} of {result.rows_in:,} rows cannot be used ({reasons})"
    hint = "Mend or remove these rows, or set on_invalid: drop to go on without them; every drop is listed in drops.jsonl."
    if any(problem.ends_file for problem in result.problems):
        hint = "The file cannot be read to its end; on_invalid: drop does not cover that, as nobody knows what is missing."
    elif not result.rows:
        hint = "No row is left. Does kind fit the file? columns maps fields to its columns, such as {prompt: question}."
    return DataError("\n".join([summary, *(problem.render(name) for problem in result.problems)]), hint=hint)
