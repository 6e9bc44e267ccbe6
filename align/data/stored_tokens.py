"""Rows in tokens from the files of `align.data.token_file`, as trainings take them: each is built when it is asked for."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, SupportsIndex, TypeVar, overload

import numpy as np

from align.config.sections import OnInvalid
from align.data.encoding import Encoded, EncodedInstruction, EncodedPreference, Where, require_length, require_rows
from align.data.forms import EVERY_TURN, PAIR, Form
from align.data.template_problems import TemplateProblem
from align.data.token_file import REFUSED_NAME, ROWS_NAME, ArrowRows, Integers
from align.records import Drop

T = TypeVar("T")


class LazyRows(Sequence[T], Generic[T]):
    """Rows that a function makes when they are asked for; a slice, and `take`, are such rows too."""

    def __init__(self, make: Callable[[int], T], places: Integers, measures: Mapping[str, Integers] | None = None) -> None:
        """Rows with these numbers, which `make` takes.

        Args:
            measures: what is known of each row without making it: `total`, its tokens, and `longest`, those of its prompt and
                longest completion.
        """
        self._make = make
        self.places = places
        self.measures = dict(measures or {})

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazyRows[T]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> T | LazyRows[T]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._make(int(self.places[operator.index(index)]))

    def __iter__(self) -> Iterator[T]:
        return (self._make(int(place)) for place in self.places)

    def take(self, rows: Integers) -> LazyRows[T]:
        """Those of the rows that are at these places."""
        return LazyRows(self._make, self.places[rows], {name: values[rows] for name, values in self.measures.items()})


class StoredTokens:
    """Tokens of the records of a file, as they are in the store: without a limit on their length."""

    def __init__(self, folder: Path, form: Form, num_records: int) -> None:
        """Map the files of a folder.

        Args:
            num_records: records, refused ones included.
        """
        self.form = form
        self.num_records = num_records
        self._rows, self._refused = ArrowRows(folder / ROWS_NAME), ArrowRows(folder / REFUSED_NAME)
        self.records: Integers = self._rows.numbers("record")
        """Number of the record of each row."""
        self.lengths: dict[str, Integers] = {part: self._rows.lengths(part) for part in form.parts}
        """Tokens of each part of each row."""
        if form is EVERY_TURN:
            self.lengths["earlier"] = self._rows.lengths("earlier")

    def number(self, name: str) -> Any:
        """One of the form's numbers for each row, float64; NaN where the record has none."""
        return self._rows.numbers(name, np.float64)

    def line(self, row: int) -> int | None:
        line: int | None = self._rows.value(row, "line")
        return line

    def row_id(self, row: int) -> str:
        return str(self._rows.value(row, "id"))

    def instruction(self, row: int) -> EncodedInstruction:
        """A row with one completion."""
        prompt, completion = (self._rows.ids(row, part) for part in self.form.parts)
        if self.form is not EVERY_TURN:
            return EncodedInstruction(self.row_id(row), prompt, completion)
        earlier, turns = self._rows.value(row, "earlier"), tuple(self._rows.value(row, "turns"))
        return EncodedInstruction(
            self.row_id(row), prompt, completion, tuple(zip(earlier[::2], earlier[1::2], strict=True)), turns
        )

    def preference(self, row: int) -> EncodedPreference:
        """A row with two completions."""
        return EncodedPreference(self.row_id(row), *(self._rows.ids(row, part) for part in self.form.parts))

    def read(self, *, max_tokens: int, on_invalid: OnInvalid, where: Where) -> tuple[LazyRows[Any], LazyRows[Drop]]:
        """Rows that are not too long, and the records that are or were refused, in their order.

        Raises:
            DataError: see `align.data.encoding.encode_instructions`.
        """
        over = np.flatnonzero(self._longest > max_tokens)
        long_records, first = np.unique(self.records[over], return_index=True)
        long_rows = over[first]
        kept = np.flatnonzero(~np.isin(self.records, long_records)) if len(over) else np.arange(len(self.records))
        make = self.preference if self.form is PAIR else self.instruction
        refused: Integers = self._refused.numbers("record")
        # Two sources of refused rows; sorting by number puts them back in the order of the records.
        order = np.argsort(np.concatenate([refused, long_records]), kind="stable")

        def drop(place: int) -> Drop:
            if place < len(refused):
                values = {name: self._refused.value(place, name) for name in ("id", "reason", "detail")}
                return Drop(id=values["id"], drop_reason=values["reason"], detail=values["detail"])
            row = int(long_rows[place - len(refused)])
            return Drop(id=self.row_id(row), drop_reason="too_long", detail=self._too_long(row, max_tokens))

        def line(place: int) -> int | None:
            return self._refused.value(place, "line") if place < len(refused) else self.line(int(long_rows[place - len(refused)]))

        measures = {"total": self.total[kept], "longest": self._longest[kept]}
        rows, drops = LazyRows(make, kept, measures), LazyRows(drop, order)
        require_rows(Encoded(rows, drops), LazyRows(line, order), self.num_records, on_invalid, where)
        return rows, drops

    @cached_property
    def total(self) -> Integers:
        """Tokens of each row, all parts together."""
        total: Integers = np.sum(list(self.lengths.values()), axis=0, dtype=np.int64)
        return total

    @cached_property
    def _longest(self) -> Integers:
        """Tokens of each row that the limit is on: those of a prompt and the longest completion, and turns before it."""
        prompt, *completions = (self.lengths[part] for part in self.form.parts)
        longest: Integers = prompt + np.max(completions, axis=0) + self.lengths.get("earlier", 0)
        return longest

    def _too_long(self, row: int, max_tokens: int) -> str:
        """What is wrong with a row that is too long."""
        lengths = [int(self._longest[row])]
        if self.form is EVERY_TURN:  # the first of its turns, with what stands before it, that is too long
            turns = [*self.instruction(row).earlier, ([], [])]
            ends = np.cumsum([len(prompt) + len(completion) for prompt, completion in turns])[:-1]
            lengths = [*(int(end) for end in ends), *lengths]
        try:
            for length in lengths:
                require_length(length, max_tokens, self.form.counted, "max_tokens")
        except TemplateProblem as problem:
            return str(problem)
        raise AssertionError(f"row {row} is not too long")
