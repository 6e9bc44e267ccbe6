"""Turns one row of a user's file into records, or into everything that is wrong with the row.

This is the inner loop of reading data. How to read rows with the same columns is worked out once, and a usable row costs a few
microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from align.rows.build import Builder, Part
from align.rows.fields import Columns, FieldTaker, Problems, Row
from align.rows.kind import ORIGIN_COLUMNS, DataKind
from align.rows.problem import FieldProblem, encoding_problem, shown
from align.rows.shapes import Fit, Recogniser

READ_PAST = "parallel_tool_calls"
"""A column of OpenAI's files that says how its API samples; it is not reported as unused."""
MAX_PLANS = 10_000
"""Column sets whose reading is cached."""


class RowRead(NamedTuple):
    """What one row holds."""

    id: str | None
    """The row's own id."""
    parts: Sequence[Part]
    """Usually one, with an empty suffix for the id; see `Part`."""
    problems: Sequence[FieldProblem]
    """Everything that is wrong with the row; a row with problems has no parts."""
    unused: tuple[str, ...]
    """Columns with a value that no field took."""


@dataclass
class Reading:
    """How rows were read."""

    shapes: Counter[str] = field(default_factory=Counter)
    """Rows by shape."""
    columns: dict[str, dict[str, None]] = field(default_factory=dict)
    """Columns that rows of a shape were read from, in the order of the fields."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Number of rows by the sentence that says what was done with them."""

    def count(self, fit: Fit, rows: int) -> None:
        """Add rows of one shape."""
        self.shapes[fit.shape.name] += rows
        self.columns.setdefault(fit.shape.name, {}).update(dict.fromkeys(fit.columns.values()))

    def merge(self, other: Reading) -> None:
        """Add the counts of more rows."""
        self.shapes.update(other.shapes)
        for name, columns in other.columns.items():
            self.columns.setdefault(name, {}).update(columns)
        self.remarks.update(other.remarks)

    def notes(self, kind: DataKind[Any]) -> list[str]:
        """What the user should know about it, one sentence each."""
        shapes = [(f"{name} ({', '.join(self.columns[name])})", count) for name, count in self.shapes.most_common()]
        if len(shapes) > 1:
            notes = ["shapes: " + ", ".join(f"{name} {count:,} rows" for name, count in shapes)]
        else:
            notes = [f"shape: {name}" for name, _ in shapes if not all(kind.is_plain(*one) for one in self.columns.items())]
        return [*notes, *(f"{count:,} {sentence}" for sentence, count in self.remarks.items() if count)]


_Read = Callable[[Row, Columns, Problems], Sequence[Part]]
"""A `Build` bound to its builder."""


@dataclass(slots=True)
class _Plan:
    """How to read rows with the same columns."""

    fit: Fit | None
    columns: Columns
    build: _Read
    unused: tuple[str, ...]
    count: int = 0


class RowReader:
    """Reads the rows of one file.

    Args:
        kind: what the rows are.
        columns: align's field → column of the file, where they differ.
        max_characters: a longer text is a problem, in Unicode code points.
    Raises:
        RecipeError: if no shape has all the fields that `columns` maps.
    """

    def __init__(self, kind: DataKind[Any], columns: Columns, max_characters: int) -> None:
        self._recogniser = Recogniser(kind.name, kind.shapes, columns)
        self._take = FieldTaker(max_characters)
        self._builder = Builder(self._take)
        self._id_column = columns.get("id", "id")
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._counted_earlier = Reading()

    def read(self, row: Row) -> RowRead:
        """The records of one row. Never raises."""
        names = tuple(row)
        # A null counts as absent: files made from a table have every column in every row. Most rows skip the second pass.
        if None in row.values():
            names = tuple(name for name, value in row.items() if value is not None)
        # The shape depends on the names alone, so it is worked out once for each set of columns.
        plan = self._plans.get(names) or self._make_plan(names)
        plan.count += 1
        problems: Problems = []
        parts: Sequence[Part] = ()
        try:
            parts = plan.build(row, plan.columns, problems)
        except FieldProblem as problem:
            problems.append(problem)
        own_id = row.get(self._id_column)
        if own_id is not None:
            own_id = _own_id(own_id, problems)
        return RowRead(own_id, () if problems else parts, problems, plan.unused)

    def reading(self) -> Reading:
        """How the rows so far were read."""
        result = Reading(remarks=Counter(self._take.remarks))
        # Plans that were dropped for room have left their counts here.
        result.merge(self._counted_earlier)
        self._count(result)
        return result

    def _count(self, reading: Reading) -> None:
        """Add the rows that the present plans have read."""
        for plan in self._plans.values():
            if plan.fit is not None:
                reading.count(plan.fit, plan.count)

    @property
    def extra_message_keys(self) -> set[str]:
        """`field.key` of keys in messages that are neither role nor content."""
        return self._take.extra_message_keys

    def _make_plan(self, names: tuple[str, ...]) -> _Plan:
        # Rows whose keys are data would each need a plan; without a bound they would fill the memory.
        if len(self._plans) >= MAX_PLANS:
            self._count(self._counted_earlier)
            self._plans.clear()
        # align's own files may have line and file; they are replaced, so they are not reported as unused.
        used = {self._id_column, *ORIGIN_COLUMNS, READ_PAST}
        fit: Fit | None = None
        try:
            fit = self._recogniser.find(names)
            build: _Read = partial(fit.shape.build, self._builder)
        except FieldProblem as problem:
            build = partial(_refuse, problem)
        columns = fit.columns if fit is not None else {}
        unused = tuple(name for name in names if name not in {*used, *columns.values()})
        self._plans[names] = plan = _Plan(fit, columns, build, unused)
        return plan


def _refuse(problem: FieldProblem, _row: Row, _columns: Columns, problems: Problems) -> Sequence[Part]:
    """Refuses a row. As a partial function of the problem, it refuses every row with the same columns."""
    problems.append(problem)
    return ()


def _own_id(value: Any, problems: Problems) -> str | None:
    """The row's own id as text; None for an empty one."""
    if type(value) is str:
        # Only other texts can hold half a surrogate pair.
        if not value.isascii() and (problem := encoding_problem("id", value)):
            problems.append(problem)
            return None
        return value or None
    # A bool is an int in Python.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    problems.append(FieldProblem("id", "wrong_type", f"must be text or a whole number, but is {shown(value)}"))
    return None
