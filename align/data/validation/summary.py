"""The results of validation: problems of rows, counts of findings, and the summary of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from align.config.row_checks import ROW_CHECKS, STATISTICS, Action
from align.records import is_list, place_of, place_word
from align.rows import DataKind
from align.rows.problem import FieldProblem
from align.rows.row import Reading

SHOWN_PLACES = 5
SHOWN_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one row. A row with several gives several."""

    line: int
    """1-based line on which the row starts; of columnar files, the row; 0 where only the element is known."""
    row_number: int
    """1-based number among the file's rows; a line of a .json file can hold several."""
    row_id: str
    """Id of the row, or one made from its number."""
    field: str
    """The field with the problem; empty for the whole row."""
    reason: str
    """`drop_reason`."""
    message: str
    """The value and what was expected."""
    ends_file: bool = False
    """Whether the file cannot be read beyond it; such a file is unusable, whatever on_invalid says."""
    element: int = 0
    """1-based number in the list of a .json file, all of which may be on one line; 0 for other files."""
    pointer: str = ""
    """JSON Pointer (RFC 6901) into that list, such as `/2/prompt`."""
    action: Action = "error"
    """What happens to the row."""
    file: str = ""
    """Name of the file in messages."""
    counted: bool = True
    """Whether this is the row's first problem: the one that its drop has as its reason."""
    seq: int = -1
    """0-based number among all rows of the source; -1 for a problem of the file."""

    @property
    def place(self) -> str:
        """`file:line`; of a list, `file:line: element 3 (/2/prompt)`."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: element {self.element} ({self.pointer})" if self.element else place

    @property
    def number(self) -> int:
        """What names the row within its file: the element of a list, or else the line; 0 where it is no row's."""
        return self.element if is_list(self.file) else self.line

    def render(self) -> str:
        """`file:line: field: message`; half a character, which a name or value may hold and no file can, as its escape."""
        text = f"{self.place}: {self.field + ': ' if self.field else ''}{self.message}"
        return text.encode("utf-8", "backslashreplace").decode()

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ROW_CHECKS[self.reason].advice


@dataclass
class Tally:
    """How often something was found, and the first places."""

    count: int = 0
    places: list[tuple[str, int]] = field(default_factory=list)
    """File and number (see `Problem.number`) of the first few."""

    def add(self, file: str, number: int) -> None:
        self.count += 1
        # One line may give several findings, such as the pairs of one ranking.
        if number and len(self.places) < SHOWN_PLACES and (file, number) not in self.places:
            self.places.append((file, number))

    def merge(self, other: Tally) -> None:
        self.count += other.count
        self.places += other.places[: SHOWN_PLACES - len(self.places)]


@dataclass
class Summary:
    """The counts of a source's rows, problems and findings."""

    shown: str
    """Name of the source in messages."""
    kind: DataKind[Any]
    files: list[str] = field(default_factory=list)
    rows_in: int = 0
    """Rows found, good and bad; a list of ranked completions counts once for every pair in it."""
    rows_read: int = 0
    """Rows without a problem of their own; some may be dropped after the comparison with others."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Dropped rows, by their first problem."""
    errors: int = 0
    """Rows whose action is error."""
    problems: dict[str, Tally] = field(default_factory=dict)
    """All problems of dropped rows, by `drop_reason`; a row may have several."""
    actions: dict[str, Action] = field(default_factory=dict)
    """Action by problem and finding."""
    findings: dict[str, Tally] = field(default_factory=dict)
    """Findings about kept rows."""
    # A dict, not a set, to keep the order of the columns.
    unused: dict[str, None] = field(default_factory=dict)
    """Columns (and `field.key` of messages) that no field took."""
    reading: Reading = field(default_factory=Reading)
    """How the rows were read."""
    cut_short: bool = False
    """Whether a file could not be read to its end: the number of missing rows is unknown."""
    near_duplicates: bool = False
    """Whether near duplicates were searched for."""

    @property
    def rows_out(self) -> int:
        """Kept rows: rows_in = rows_out + the sum of `dropped`."""
        return self.rows_in - self.dropped.total()

    @property
    def usable(self) -> bool:
        """Whether the input can be used as it is."""
        return not self.errors and not self.cut_short and self.rows_out > 0

    def counts(self) -> dict[str, int]:
        """Number of occurrences by finding; findings that do not occur are left out."""
        return {name: tally.count for name, tally in self.findings.items()}

    def notes(self) -> list[str]:
        """The findings in words, with the first lines, and how the rows were understood."""
        single = len(self.files) < 2
        notes = [finding_note(name, tally, self.rows_read, single_file=single) for name, tally in self.findings.items()]
        notes += self.reading.notes(self.kind)
        return [*notes, *self.unused_note()]

    def unused_note(self) -> list[str]:
        """One sentence that names the columns that no field took; none without any."""
        names = list(self.unused)
        more = f" and {len(names) - SHOWN_COLUMNS:,} more" if len(names) > SHOWN_COLUMNS else ""
        what = "columns not used, but for results by field" if self.kind.keeps_other_columns else "columns not used"
        return [f"{what}: {', '.join(map(str, names[:SHOWN_COLUMNS]))}{more}"] if names else []

    def count(self, problem: Problem) -> None:
        """Take a problem into the counts."""
        self.problems.setdefault(problem.reason, Tally()).add(problem.file, problem.number)
        self.cut_short = self.cut_short or problem.ends_file


def finding_note(name: str, tally: Tally, rows: int, *, single_file: bool) -> str:
    """One sentence about a finding, with the first lines that have it.

    Args:
        name: of a check; `trailing_white_space:COLUMN` and `conflicting:COLUMN` are about a column that no field took.
        rows: what a statistic's count is a share of.
        single_file: whether a line number alone is enough.
    """
    if name in STATISTICS:
        return f"{STATISTICS[name]}: {tally.count:,} of {rows:,} ({100 * tally.count / max(rows, 1):.0f} %)"
    kind, _, column = name.partition(":")
    if kind == "conflicting":
        what = f"prompts with different values in the unused column {column!r}"
    else:
        what = f"values of the unused column {column!r} that end in white space" if column else ROW_CHECKS[name].meaning
    return f"{what}: {tally.count:,} ({shown_places(tally, single_file=single_file)})"


def pointer_to(number: int, problem: FieldProblem, columns: Mapping[str, str], row: Mapping[str, Any]) -> str:
    """JSON Pointer to what is wrong with an element of a list.

    Args:
        columns: align's field → column of the file, where they differ.
    """
    column = columns.get(problem.field, problem.field)
    # Labels such as `prompt message 2` are no keys; a field that is missing would be one.
    named = column in row or (problem.reason == "missing_field" and problem.field)
    key = str(column).replace("~", "~0").replace("/", "~1")
    return f"/{number - 1}/{key}" if named else f"/{number - 1}"


def shown_places(tally: Tally, *, single_file: bool) -> str:
    """`line 3, 7, …`, or `a.jsonl:3, b.jsonl:7, …`; of lists `element 3, 7, …`."""
    places = [str(number) if single_file else place_of(file, number) for file, number in tally.places]
    more = ", …" if tally.count > len(places) else ""
    word = f"{place_word(tally.places[0][0])} " if single_file and places else ""
    return word + ", ".join(places) + more


def catalogue_name(finding: str) -> str:
    """The check that a finding belongs to."""
    kind, _, column = finding.partition(":")
    return "conflicting_labels" if column and kind == "conflicting" else kind


def findings_in_order(findings: Mapping[str, Tally]) -> dict[str, Tally]:
    """The findings that occur, in the order of the catalogue, then statistics."""
    order = {name: number for number, name in enumerate([*ROW_CHECKS, *STATISTICS])}
    return {name: findings[name] for name in sorted(findings, key=lambda one: order[catalogue_name(one)]) if findings[name].count}
