"""The first rows of an input's files: whether they can be used, and as what."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from align.config.inputs import DataInput
from align.config.names import LONGEST_NAME
from align.data.source import HubRows, Source, SourceFile, read_prefix
from align.errors import AlignError, RecipeError
from align.pipeline.checks.finding import Action, Finding, dropped_rows
from align.written import for_options, mapped_columns

if TYPE_CHECKING:
    from align.data.validation import Problem, Summary

HEAD_ROWS = 64
"""Rows read of each file."""
MOST_FILES = 32
"""Files read of an input; a folder of thousands would take as long as the run's own reading."""
SHOWN_PROBLEMS = 4
OF_SHAPE = frozenset({"missing_field", "wrong_type", "ambiguous_shape", "bad_roles"})
"""Reasons by which rows may be of another kind."""


@dataclass(frozen=True)
class Head:
    """The first rows of an input."""

    raw: Sequence[dict[str, Any]]
    """The rows of its first file as they stand there."""
    records: Sequence[Any]
    """The usable rows of all files."""
    summary: Summary
    problems: Sequence[Problem]
    is_whole: bool
    """Whether there are no further rows."""

    @property
    def count(self) -> str:
        """The number of rows in words."""
        return f"{self.summary.rows_in:,}" if self.is_whole else f"the first {self.summary.rows_in:,}"


def keeps_all(source: Source, spec: DataInput) -> bool:
    """Whether every usable row reaches the stages; a mixture, a share, and comparisons of rows, leave some out."""
    return not (source.weights or spec.share or spec.decontaminate or any(action == "drop" for action in spec.checks.values()))


def is_local(source: Source) -> bool:
    """Whether all rows are on this machine; making a plan must not use the network."""
    return not any(isinstance(file.origin, HubRows) for file in source.files)


def read_head(source: Source, spec: DataInput) -> Head:
    """Read and validate the first rows of every file.

    Raises:
        DataError, RecipeError: if a file cannot be read at all.
    """
    from align.data.validation import collect_rows, rules_of  # with NumPy: a plan that read these rows before needs neither
    from align.data.validation.block import Block

    heads = itertools.islice(read_prefix(source, HEAD_ROWS), MOST_FILES)
    blocks = [Block(number, rows) for number, rows in enumerate(heads)]
    problems: list[Problem] = []
    with collect_rows(source, rules_of(spec), on_problem=problems.append, blocks=blocks) as collection:
        records = list(collection.records())
    raw = [row for _, row in blocks[0].data if isinstance(row, dict)]  # type: ignore[misc]  # a block of rows, not of bytes
    is_whole = len(blocks) == len(source.files) and all(len(block.data) < HEAD_ROWS for block in blocks)
    return Head(raw, records, collection.summary, problems, is_whole)


def check_rows(name: str, where: str, spec: DataInput, source: Source) -> list[Finding]:
    """What is wrong with the first rows of an input.

    Args:
        where: place of the input in its recipe.
    """
    if not is_local(source):
        return [Finding(name, "its rows are not checked before they are downloaded", action="note")]
    try:
        head = read_head(source, spec)
    except RecipeError as error:  # `columns`; a file that is not there was found before
        return [Finding(name, f"{where}.{error.message}", error.hint or "")]
    except AlignError as error:
        return [Finding(name, error.message, error.hint or "", cause="data")]
    if head.summary.usable:
        return [*check_columns(name, where, source.files[0], head, "warn"), *_dropped(name, source, head)]
    # Rows further down may be usable where unusable ones are dropped.
    action: Action = "refuse" if head.summary.errors or head.summary.cut_short or head.is_whole else "warn"
    found = check_columns(name, where, source.files[0], head, action)
    return found or [_unusable(name, where, spec, source, head, action)]


def _dropped(name: str, source: Source, head: Head) -> list[Finding]:
    reasons = dict(head.summary.dropped.most_common())
    if not reasons:
        return []
    advice = "`align data validate` names each of them."
    return [dropped_rows(name, source.shown, head.summary.rows_in, reasons, advice, is_whole=head.is_whole)]


def check_columns(name: str, where: str, file: SourceFile, head: Head, action: Action) -> list[Finding]:
    """`columns` that map a field to a column which no row has; an optional field would be left out without a word."""
    there = list(dict.fromkeys(str(column) for row in head.raw for column in row))
    return [
        Finding(name, f"{where}.columns.{field}: no row of {file.shown} has the column {column!r}", advice, action, "data")
        for field, column in file.columns.items()
        if there and column not in there
        for advice in [_nearest(column, there)]
    ]


def _nearest(column: str, there: Sequence[str]) -> str:
    by_lower = {one.lower(): one for one in there}
    close = get_close_matches(column.lower()[:LONGEST_NAME], by_lower, n=1)
    return f"Did you mean {by_lower[close[0]]!r}?" if close else f"Its columns are {', '.join(there[:8])}."


def _unusable(name: str, where: str, spec: DataInput, source: Source, head: Head, action: Action) -> Finding:
    summary = head.summary
    if not summary.rows_in:
        return Finding(name, f"{source.shown}: there is no row in it", "Check the path; is the file empty?", action, "data")
    is_other = not summary.rows_out and not summary.cut_short and bool(OF_SHAPE & summary.dropped.keys())
    others = _other_kinds(spec, source.files[0], head) if is_other else []
    if others:
        names = ", ".join(map(str, head.raw[0]))
        choices = "; or ".join(f"kind: {kind}" for kind in others)
        text = f"{where}: {source.shown}: this looks like {' or '.join(others)}: columns {names}"
        there = {str(column) for row in head.raw for column in row}
        absent = {field: "…" for field in spec.row_kind.shapes[0].required if field not in there}
        # Any row with a prompt fits prompts, whatever its other columns are called.
        mapped = f"say which columns they are: {mapped_columns(absent)}" if others == ["prompts"] and len(there) > 1 else ""
        # The kind of an option's file is that of the option.
        kind = "" if for_options() else f"write {choices}"
        advice = f"{'; or '.join(filter(None, (kind, mapped, f'name a file of {spec.row_kind.phrase}')))}."
        advice = advice[0].upper() + advice[1:]
        return Finding(name, text, advice, action, "data")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.dropped.most_common())
    lines = [problem.render() for problem in head.problems[:SHOWN_PROBLEMS]]
    # Long ones take several lines of a terminal each.
    while len(lines) > 1 and sum(len(textwrap.wrap(line, 80)) for line in lines) > SHOWN_PROBLEMS:
        lines.pop()
    hidden = len(head.problems) - len(lines)
    headline = f"{source.shown}: {summary.dropped.total():,} of {head.count} rows cannot be used ({reasons})"
    advice = "Correct them, or write on_invalid: drop to go on without them."
    if summary.cut_short:
        advice = "The file cannot be read to its end: get it again, or correct it there."
    elif not summary.rows_out and "missing_field" in summary.dropped:
        mapping = mapped_columns({_example(spec): "…"})
        advice = f"Map fields to the file's columns: {mapping}. `align docs formats` shows what rows may look like."
    return Finding(name, "\n".join([headline, *lines, *([f"… and {hidden:,} more"] if hidden else [])]), advice, action, "data")


def _other_kinds(spec: DataInput, file: SourceFile, head: Head) -> list[str]:
    if not head.raw or file.columns:  # columns that the recipe names were chosen for this kind
        return []
    from align.data.validation.kind import kinds_that_fit

    return [kind for kind in kinds_that_fit(file.columns, head.raw, spec.max_characters) if kind != spec.kind]


def _example(spec: DataInput) -> str:
    return next(iter(spec.row_kind.shapes[0].required))
