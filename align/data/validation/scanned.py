"""How rows are looked at, and what a block of them holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from align.config.row_checks import Action, action_of
from align.data.validation.ledger import Table
from align.data.validation.problem import Problem
from align.rows import DataKind
from align.rows.row import Reading

SHOWN_PLACES = 5
MAX_LABEL_VALUES = 20
"""A column with more different values is no label; that equal prompts differ in it says nothing."""
MAX_LABEL_COLUMNS = 100
"""Unused columns that are looked at as labels: rows whose keys are data would fill the memory."""
ID_SHOWN_BYTES = 48

ID_TYPE = np.dtype([("key", "u8"), ("seq", "u8"), ("line", "u4"), ("origin", "u1"), ("id", f"S{ID_SHOWN_BYTES}")])
"""`origin`: one of those below; `id`: the start of a given id, for messages."""
GIVEN, GIVEN_BAD, MADE = 0, 1, 2
"""An id of a usable row, of a row that cannot be used, and one made from the row's content."""
CONTENT_TYPE = np.dtype([("key", "u8"), ("first", "u8"), ("second", "u8"), ("seq", "u8"), ("line", "u4")])
"""Hashes of the prompt (or text); of what else the row holds, at most two fields: see `DataKind.contents`."""
LABEL_TYPE = np.dtype([("key", "u8"), ("value", "u8"), ("seq", "u8"), ("line", "u4")])


@dataclass(frozen=True)
class RowRules:
    """How rows are read and what is done about what is wrong with them."""

    kind: DataKind[Any]
    max_characters: int = 100_000
    """A longer text is a problem, in Unicode code points."""
    on_invalid: Action = "error"
    """What is done with a row that cannot be used, unless `checks` says otherwise."""
    checks: Mapping[str, Action] = field(default_factory=dict)
    """Action by check, where it is not the default."""

    def action(self, name: str) -> Action:
        """What is done with a row in which `name` was found."""
        return action_of(name, self.checks, self.on_invalid)


@dataclass(frozen=True)
class FileRules:
    """What scanning one file's rows needs to know besides the rules for all."""

    shown: str
    """How messages call the file."""
    columns: Mapping[str, str]
    """Field of ours → column of the file, where the names differ."""
    part: str = ""
    """Name of the mixture's part that it belongs to: ids are unique within it."""
    named: bool = False
    """Whether records carry the file's name, because there are several."""
    all_text: bool = False
    """Whether the format knows nothing but text, as CSV does: a number written as text is no mistake there."""


@dataclass(frozen=True)
class Wanted:
    """What besides counts and hashes somebody wants of the usable rows."""

    rows: bool = False
    """The rows as JSON, with ids."""
    keys: bool = False
    """The text of each row's prompt, for the search for near duplicates."""


@dataclass
class Tally:
    """How often something was found, and the first places."""

    count: int = 0
    places: list[tuple[str, int]] = field(default_factory=list)
    """File and line of the first few."""

    def add(self, file: str, line: int) -> None:
        self.count += 1
        if len(self.places) < SHOWN_PLACES and (file, line) not in self.places:
            self.places.append((file, line))

    def merge(self, other: Tally) -> None:
        self.count += other.count
        self.places += other.places[: SHOWN_PLACES - len(self.places)]


@dataclass
class Scanned:
    """What a block of rows holds. `seq` and row numbers count from the block's first row."""

    units: int = 0
    """Records and unusable rows."""
    bad: int = 0
    """Unusable rows."""
    problems: list[Problem] = field(default_factory=list)
    findings: dict[str, Tally] = field(default_factory=dict)
    unused: dict[str, None] = field(default_factory=dict)
    """Columns that no field took, in the order in which they came."""
    reading: Reading = field(default_factory=Reading)
    chosen_longer: int = 0
    ids: Table = field(default_factory=lambda: np.empty(0, ID_TYPE))
    contents: Table = field(default_factory=lambda: np.empty(0, CONTENT_TYPE))
    labels: dict[str, Table | None] = field(default_factory=dict)
    """By unused column; None for one that has too many values to be a label."""
    rows: list[tuple[int, str, bytes]] = field(default_factory=list)
    """seq, id and the rest of the record's JSON behind the id, where wanted."""
    keys: list[tuple[int, int, str]] = field(default_factory=list)
    """seq, line and prompt, where wanted."""
