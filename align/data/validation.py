"""Validate the rows of a user's file: every row becomes a record or a problem with its line, and none is lost.

Texts stay exactly as they are. What can be used but should be known (repetitions, contradictions, stray white space) is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from align.data.conversation import FieldError
from align.data.finding import Findings
from align.data.reader import RawProblem, RawRow
from align.data.row import FIELDS, OWN_COLUMNS, RowReader
from align.errors import RecipeError
from align.records import RECORD_TYPES, Drop, Record


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one row. A row with several gives several."""

    line: int
    """1-based line on which the row starts."""
    row_number: int
    """1-based number among the file's rows; a line of a .json file can hold several."""
    row_id: str
    """Id of the row; made from its number where it has none."""
    field: str
    """Field of ours that is concerned; empty when it is the whole row."""
    reason: str
    """`drop_reason`."""
    message: str
    """The value and what was expected."""
    ends_file: bool = False
    """Whether nothing after it could be read; such a file cannot be used, whatever on_invalid says."""
    shares_line: bool = False
    """Whether the row before it starts on the same line, so that the line alone does not tell which row is meant."""

    def render(self, source_name: str) -> str:
        """`file:line: field: message`."""
        place = f"{source_name}:{self.line}" + (f" (row {self.row_number:,})" if self.shares_line else "")
        return f"{place}: {self.field + ': ' if self.field else ''}{self.message}"


@dataclass
class Validated:
    """What a file holds."""

    source_name: str
    rows_in: int = 0
    """Rows found, good and bad."""
    rows: list[Record] = field(default_factory=list)
    """Rows that can be used, in file order."""
    problems: list[Problem] = field(default_factory=list)
    """Everything wrong with the others, in file order."""
    columns_unused: list[str] = field(default_factory=list)
    """Columns (and `field.key` of messages) that no field took."""
    counts: dict[str, int] = field(default_factory=dict)
    """Findings about the rows in `rows`, by name."""
    notes: list[str] = field(default_factory=list)
    """The findings in words, with line numbers."""

    def drops(self) -> list[Drop]:
        """One drop per unusable row, with the first thing that is wrong with it. `detail` has all of them."""
        by_row: dict[int, list[Problem]] = {}
        for problem in self.problems:
            by_row.setdefault(problem.row_number, []).append(problem)
        return [
            Drop(id=row[0].row_id, drop_reason=row[0].reason, detail="; ".join(p.render(self.source_name) for p in row))
            for row in by_row.values()
        ]

    def dropped(self) -> dict[str, int]:
        """Unusable rows by reason, most frequent first."""
        return dict(Counter(drop.drop_reason for drop in self.drops()).most_common())


def validate_rows(
    raw: Iterable[RawRow], *, kind: str, columns: Mapping[str, str], max_characters: int, source_name: str
) -> Validated:
    """Turn raw rows into records of `kind` (instructions, preferences, prompts or text).

    A row without an id gets `row-00012`, its 1-based number among the file's rows, so that mending one row renames no other.

    Args:
        raw: rows or reading problems, each with its line number.
        columns: field of ours → column of the file, where the names differ.
        max_characters: a longer text is a problem, in Unicode code points.
        source_name: file name shown in messages.
    Raises:
        RecipeError: if `columns` names a field that rows of this kind do not have.
    """
    check_columns(kind, columns)
    validation = _Validation(kind, columns, max_characters, source_name)
    for line, row in raw:
        validation.add(line, row)
    return validation.finish()


def check_columns(kind: str, columns: Mapping[str, str]) -> None:
    """Refuse a column mapping for a field that does not exist."""
    for name in columns:
        if name not in FIELDS[kind]:
            close = get_close_matches(name, FIELDS[kind], n=1)
            raise RecipeError(
                f"columns: {name!r} is not a field of {kind}; the fields are {', '.join(FIELDS[kind])}",
                hint=f"Did you mean {close[0]}?" if close else "columns maps our field to the file's column: {prompt: Q}.",
            )


class _Validation:
    """The state of one pass over a file."""

    def __init__(self, kind: str, columns: Mapping[str, str], max_characters: int, source_name: str) -> None:
        self._kind = kind
        self._columns = columns
        self._max_characters = max_characters
        self._result: Validated = Validated(source_name)
        self._findings = Findings()
        self._line_of_id: dict[str, int] = {}
        self._unused: dict[str, None] = {}
        self._transcripts = 0
        self._last_line = 0

    def add(self, line: int, row: dict[str, Any] | RawProblem) -> None:
        self._result.rows_in += 1
        number = self._result.rows_in
        shares_line, self._last_line = line == self._last_line, line
        row_id = f"row-{number:05d}"
        if isinstance(row, RawProblem):
            problem = Problem(line, number, row_id, "", row.reason, row.message, row.ends_file, shares_line)
            self._result.problems.append(problem)
            return
        reader = RowReader(row, self._columns, self._max_characters)
        fields = reader.record(self._kind)
        row_id = reader.explicit_id() or row_id
        faults = [*reader.faults, *self._duplicate_id(row_id, line)]
        if faults or fields is None:
            self._result.problems += [
                Problem(line, number, row_id, fault.field, fault.reason, fault.message, shares_line=shares_line)
                for fault in faults
            ]
            return
        record = RECORD_TYPES[self._kind].model_validate({"id": row_id, "line": line, **fields})
        assert isinstance(record, Record)  # every kind of user data is one
        self._result.rows.append(record)
        self._transcripts += reader.from_transcripts
        unused = {name: value for name, value in row.items() if name not in reader.used and name not in OWN_COLUMNS}
        self._unused.update(dict.fromkeys([*unused, *sorted(reader.extra_message_keys)]))
        self._findings.add(record, unused)

    def _duplicate_id(self, row_id: str, line: int) -> list[FieldError]:
        """An id belongs to the first row that has it, whether or not that row can be used."""
        if row_id not in self._line_of_id:
            self._line_of_id[row_id] = line
            return []
        return [FieldError("id", "duplicate_id", f"{row_id!r} is also the id of line {self._line_of_id[row_id]}")]

    def finish(self) -> Validated:
        result = self._result
        result.columns_unused = list(self._unused)
        result.counts = self._findings.counts()
        result.notes = self._findings.notes()
        if self._transcripts:
            result.notes.append(f"{self._transcripts:,} pairs are Human/Assistant transcripts; they were split into messages")
        if result.columns_unused:
            result.notes.append(f"columns not used: {', '.join(result.columns_unused)}")
        return result
