"""Imports a recipe's data input into the store: reads and validates it, writes its rows and its drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from align.config.inputs import DataInput
from align.data.mixture import NOT_SAMPLED, mixed_places
from align.data.quality.overlap import EvaluationIndex
from align.data.reader import RawRow
from align.data.share import OUTSIDE_SHARE, in_share
from align.data.source import HubRows, Source, fetch_file
from align.data.validation.block import blocks_of
from align.data.validation.collection import Kept, collect_rows
from align.data.validation.scan import rules_of
from align.data.validation.summary import Problem, Summary
from align.errors import MAX_ERROR_LINES, DataError
from align.records import Drop
from align.store.artifact import DROPS_NAME, ROWS_NAME
from align.store.atomic import atomic_writer

MAX_SHOWN = MAX_ERROR_LINES - 3
"""Most problems listed in an error; the headline, the number of hidden problems and the hint take the other lines."""


@dataclass(frozen=True)
class Ingested:
    """The result of importing an input."""

    rows_in: int
    """Rows found."""
    rows_out: int
    """Rows written."""
    dropped: dict[str, int]
    """Dropped rows by `drop_reason`; rows_in = rows_out + their sum."""
    findings: dict[str, int]
    """Number of findings about the rows written, by check (see `align.config.row_checks`)."""
    notes: list[str]
    """The findings as sentences."""
    source: str
    """The file, or the hub id with its commit; of a mixture the parts, and those of the hub with their commits."""


def ingest(spec: DataInput, source: Source, entry_folder: Path, *, evaluation: EvaluationIndex | None = None) -> Ingested:
    """Write `rows.jsonl` and `drops.jsonl` into `entry_folder`.

    Args:
        spec: the input as the recipe has it.
        source: the files of `spec`.
        entry_folder: existing folder of the store entry.
        evaluation: prompts that no row may overlap; the rows that do are dropped, whatever `on_invalid` says.
    Raises:
        DataError: if a row has a problem with the action `error` (`on_invalid`, `checks`), if no row is usable, or if a file is
            damaged or cut short, since nobody could say how many rows are missing. Nothing is written.
        EnvironmentProblem, RecipeError: see `fetch_file`.
    """
    # Datasets are opened before they are validated, because the source's name has the commits, which are found out then.
    source, opened = _opened(source)
    first = _FirstProblems()
    rules = rules_of(spec, evaluation)
    with collect_rows(source, rules, folder=entry_folder, on_problem=first.add, blocks=blocks_of(source, opened)) as collection:
        summary = collection.summary
        if not summary.usable:
            raise invalid_rows(summary, first.problems)
        dropped = _write(_of_share(collection, spec) if spec.share else collection, source, entry_folder)
    return Ingested(
        rows_in=summary.rows_in,
        rows_out=summary.rows_in - dropped.total(),
        dropped=dict(dropped.most_common()),
        findings=summary.counts(),
        notes=summary.notes(),
        source=source.shown,
    )


def _opened(source: Source) -> tuple[Source, dict[int, Iterator[RawRow]]]:
    """The source, named with the commit of each dataset of the hub, and the rows of these by the number of the file."""
    opened, names = dict[int, Iterator[RawRow]](), list[str]()
    for number, file in enumerate(source.files):
        if isinstance(file.origin, HubRows):
            commit, opened[number] = fetch_file(file)
            names.append(file.origin.shown(commit or file.origin.revision or "cached"))
    if not names:
        return source, opened
    shown = f"{source.shown} ({', '.join(names)})" if source.weights else names[0]
    return replace(source, shown=shown), opened


def _write(rows: Iterable[Kept | Drop], source: Source, entry_folder: Path) -> Counter[str]:
    """Write kept rows and drops; returns the number of drops by reason.

    Raises:
        DataError: if no row is kept.
    """
    dropped: Counter[str] = Counter()
    num_kept = 0
    with ExitStack() as stack:
        # Both files appear when the block ends without an error, so a refused input leaves neither.
        rows_stream = stack.enter_context(atomic_writer(entry_folder / ROWS_NAME))
        drops_stream = stack.enter_context(atomic_writer(entry_folder / DROPS_NAME))
        for row in _mixed(rows, source) if source.weights else rows:
            if isinstance(row, Kept):
                num_kept += 1
                rows_stream.write(row.line)
            else:
                dropped[row.drop_reason] += 1
                drops_stream.write((row.model_dump_json() + "\n").encode())
        if not num_kept:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())
            raise DataError(
                f"{source.shown}: no row is left ({reasons})",
                hint="Do all rows overlap the evaluation prompts, is the share too small, or has a part of the mixture no row?",
            )
    return dropped


def _of_share(rows: Iterable[Kept | Drop], spec: DataInput) -> Iterator[Kept | Drop]:
    """The rows, with those outside of the input's share as drops."""
    for row in rows:
        if isinstance(row, Kept) and not in_share(spec, spec.row_kind.record.model_validate_json(row.line)):
            yield Drop(id=row.id, drop_reason=OUTSIDE_SHARE, detail=f"share {spec.share}")
        else:
            yield row


def _mixed(rows: Iterable[Kept | Drop], source: Source) -> Iterator[Kept | Drop]:
    """The rows of a mixture: first the unusable ones, then the mixture in its order, then the rows that were not sampled."""
    # The kept rows are held in memory: which of them a mixture takes depends on the ids of all.
    parts: dict[str, list[Kept]] = {name: [] for name in source.weights}
    for row in rows:
        if isinstance(row, Drop):
            yield row
        else:
            parts[source.files[row.file_number].part or ""].append(row)
    places = mixed_places({name: [row.id for row in of_part] for name, of_part in parts.items()}, source.weights)
    # `within` adds the part's name to the id: two parts may use the same ids.
    yield from (parts[place.part][place.index].within(place.part) for place in places)
    for name, of_part in parts.items():
        taken = {place.index for place in places if place.part == name}
        detail = f"{len(taken):,} of {len(of_part):,} rows were taken"
        yield from (
            Drop(id=row.within(name).id, drop_reason=NOT_SAMPLED, detail=detail)
            for index, row in enumerate(of_part)
            if index not in taken
        )


class _FirstProblems:
    """The first problems, as many as an error lists."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Keep the problem if there is room; one that ends a file replaces the last."""
        if len(self.problems) < MAX_SHOWN:
            self.problems.append(problem)
        # Damage makes the input unusable whatever `on_invalid` says, so the error shows it however late it comes.
        elif problem.ends_file:
            self.problems[-1] = problem


def invalid_rows(summary: Summary, problems: list[Problem]) -> DataError:
    """The error for an unusable input: the number of rows by reason, then the first problems, one a line."""
    name = summary.shown
    if not summary.rows_in:
        return DataError(f"{name}: there is no row in it", hint="Check the path; is the file empty?")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.dropped.most_common())
    bad = summary.dropped.total()
    headline = f"{name}: {bad:,} of {summary.rows_in:,} rows cannot be used" + (f" ({reasons})" if reasons else "")
    hint = "Fix or remove these rows, or set on_invalid: drop to go on without them; every drop is listed in drops.jsonl."
    if summary.cut_short:
        hint = "The file cannot be read to its end; on_invalid: drop does not cover that, since nobody knows what is missing."
    elif not summary.rows_out:
        hint = "No row is left. Does kind fit the file? columns maps fields to its columns, such as {prompt: question}."
    lines = [problem.render() for problem in problems[:MAX_SHOWN]]
    hidden = sum(tally.count for tally in summary.problems.values()) - len(lines)
    return DataError("\n".join([headline, *lines, *([f"… and {hidden:,} more"] if hidden else [])]), hint=hint)
