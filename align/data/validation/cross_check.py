"""What is found by comparing all rows: ids, repetitions, contradictions, near duplicates. Memory does not grow with the rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align.data.validation.crossing import Crossing, Indexes, contradictions, mirrored, repetitions
from align.data.validation.ledger import ROWS_IN_MEMORY, Ledger, Table, with_company
from align.data.validation.problem import Problem
from align.data.validation.scanned import (
    CONTENT_TYPE,
    GIVEN_BAD,
    ID_TYPE,
    LABEL_TYPE,
    MADE,
    MAX_LABEL_COLUMNS,
    MAX_LABEL_VALUES,
    SHOWN_PLACES,
    RowRules,
    Scanned,
    Tally,
)

LEAVING_TYPE = np.dtype([("seq", "u8"), ("reason", "u1"), ("other", "u8"), ("other_line", "u4")])
RENAMED_TYPE = np.dtype([("seq", "u8"), ("number", "u4")])

_REASONS = (
    "duplicate_id",
    "repeated_rows",
    "conflicting_pairs",
    "conflicting_completions",
    "conflicting_labels",
    "repeated_prompts",
    "near_duplicate",
)
_TOLD = {
    "duplicate_id": "{what} is also the id of {other}",
    "repeated_rows": "repeats {other} entirely",
    "conflicting_pairs": "{other} has this pair the other way round",
    "conflicting_completions": "{other} has another completion for this prompt",
    "conflicting_labels": "{other} has another value for this prompt",
    "repeated_prompts": "has the prompt of {other}",
    "near_duplicate": "is almost the same as {other}",
}
_FIELDS = {"duplicate_id": "id", "repeated_prompts": "prompt", "conflicting_completions": "completion"}


@dataclass
class Settled:
    """What comparing all rows says."""

    findings: dict[str, Tally] = field(default_factory=dict)
    """Of those that are kept; `conflicting:COLUMN` for labels."""
    leaving: Table = field(default_factory=lambda: np.empty(0, LEAVING_TYPE))
    """Rows that leave, by seq: `reason` is an index of the reasons, `other` the seq of the row that they repeat or contradict."""
    renamed: Table = field(default_factory=lambda: np.empty(0, RENAMED_TYPE))
    """Rows whose id was made from their content and is another row's too, by seq; 0 where a given id is the same."""


class CrossCheck:
    """Takes the hashes of all rows, block by block, and tells at the end which rows have what in common.

    Args:
        rules: say what is done about each finding.
        folder: for files of hashes, where there are many rows.
        files: how messages call the source's files.
        rows_in_memory: see `Ledger`.
    """

    def __init__(self, rules: RowRules, folder: Path, files: list[str], *, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        self._rules = rules
        self._folder = folder
        self._files = files
        self._limit = rows_in_memory
        self._file_starts: list[int] = []
        self._ids = Ledger(ID_TYPE, folder, "ids", rows_in_memory=rows_in_memory)
        self._contents = Ledger(CONTENT_TYPE, folder, "contents", rows_in_memory=rows_in_memory)
        self._labels: dict[str, Ledger | None] = {}
        self._label_values: dict[str, set[int]] = {}
        self._keys: list[tuple[int, int, str]] = []
        self._report: Callable[[Problem], None] | None = None
        self._settled = Settled()
        self._leaving: list[Table] = []
        self._first: dict[str, list[tuple[int, int]]] = {}

    def add(self, scanned: Scanned, first_seq: int, file_number: int) -> None:
        """Take the hashes of a block whose first row is number `first_seq`."""
        self._file_starts += [first_seq] * (file_number + 1 - len(self._file_starts))
        for table in (scanned.ids, scanned.contents):
            table["seq"] += np.uint64(first_seq)
        self._ids.add(scanned.ids)
        self._contents.add(scanned.contents)
        for column, label in scanned.labels.items():
            self._add_label(column, label, first_seq)
        self._keys += [(seq + first_seq, line, text) for seq, line, text in scanned.keys]

    def forget_keys(self) -> None:
        """Take no more keys for the search for near duplicates, and free those that were taken."""
        self._keys = []

    def settle(self, report: Callable[[Problem], None] | None, *, near_duplicates: bool) -> Settled:
        """Compare all rows.

        Args:
            report: is told of every row that leaves.
            near_duplicates: whether to search for them among the keys that were taken.
        """
        self._report = report
        for table in self._ids.partitions():
            self._settle_ids(with_company(table))
        self._merge_leaving()
        for table in self._contents.partitions():
            self._settle_contents(with_company(table))
        self._merge_leaving()
        for column, ledger in self._labels.items():
            for table in ledger.partitions() if ledger is not None else ():
                staying = self._staying(with_company(table))
                self._find("conflicting_labels", staying, contradictions(staying, ("key",), "value"), column)
            self._merge_leaving()
        if near_duplicates:
            self._settle_keys()
        self._merge_leaving()
        self._settled.renamed.sort(order="seq")
        for name, tally in self._settled.findings.items():
            first = sorted(self._first[name])[:SHOWN_PLACES]
            tally.places = [(self._file_of(seq), line) for seq, line in first]
        return self._settled

    def place_of(self, seq: int, line: int) -> str:
        """`line 5`, or `file:5` where there are several files."""
        return f"line {line}" if len(self._files) == 1 else f"{self._file_of(seq)}:{line}"

    def told(self, leaving: Any, row_id: str) -> tuple[str, str]:
        """Reason and message of an entry of `Settled.leaving`."""
        reason = _REASONS[leaving["reason"]]
        other = self.place_of(int(leaving["other"]), int(leaving["other_line"]))
        return reason, _TOLD[reason].format(what=repr(row_id), other=other)

    def _file_of(self, seq: int) -> str:
        return self._files[bisect_right(self._file_starts, seq) - 1]

    def _add_label(self, column: str, label: Table | None, first_seq: int) -> None:
        known = column in self._labels
        if not known and len(self._labels) >= MAX_LABEL_COLUMNS:
            return
        if label is None or (known and self._labels[column] is None):
            self._labels[column] = None
            return
        values = self._label_values.setdefault(column, set())
        values.update(np.unique(label["value"]).tolist())
        ledger = self._labels.setdefault(column, Ledger(LABEL_TYPE, self._folder, f"label-{len(self._labels)}"))
        if ledger is None or len(values) > MAX_LABEL_VALUES:
            self._labels[column] = None
            return
        label["seq"] += np.uint64(first_seq)
        ledger.add(label)

    def _settle_ids(self, table: Table) -> None:
        """A given id belongs to the first row that has it, whether or not that row can be used; a made one gets a number."""
        given = table[table["origin"] != MADE]
        same = repetitions(given, "key")
        bad = given["origin"][same.rows] == GIVEN_BAD
        for position in np.flatnonzero(bad):  # they leave anyway; this is one reason more
            self._tell("duplicate_id", given, same.rows[position], same.others[position], "id", counted=False)
        self._leave("duplicate_id", given, Crossing(same.rows[~bad], same.others[~bad], same.counted), "id")
        made = table[table["origin"] == MADE]
        taken = np.isin(made["key"], given["key"])
        _, first, group = np.unique(made["key"], return_index=True, return_inverse=True)
        number = np.arange(len(made)) - first[group] + 1
        renamed = np.empty(len(made), RENAMED_TYPE)
        renamed["seq"], renamed["number"] = made["seq"], np.where(taken, 0, number)
        self._settled.renamed = np.concatenate([self._settled.renamed, renamed[renamed["number"] != 1]])

    def _settle_contents(self, table: Table) -> None:
        kind = self._rules.kind
        table = self._staying(table)
        table = self._find("repeated_rows", table, repetitions(table, "key", "first", "second"))
        match kind.contradiction:
            case "conflicting_pairs":
                table = self._find("conflicting_pairs", table, mirrored(table))
            case "conflicting_completions":
                table = self._find("conflicting_completions", table, contradictions(table, ("key",), "first"))
            case "conflicting_labels":
                found = contradictions(table, ("key", "first"), "second")
                table = self._find("conflicting_labels", table, found, field=kind.contents[1])
        if kind.has_prompt:
            self._find("repeated_prompts", table, repetitions(table, "key"))

    def _settle_keys(self) -> None:
        """Near duplicates among different texts; equal ones are repetitions, which are counted already."""
        from align.data.quality import near_duplicate_clusters

        gone = set(self._settled.leaving["seq"].tolist())
        first_of: dict[str, tuple[int, int]] = {}
        for seq, line, text in self._keys:
            if seq not in gone:
                first_of.setdefault(text, (seq, line))
        clusters = near_duplicate_clusters(first_of).clusters
        pairs = sorted((row, cluster.rows[0]) for cluster in clusters for row in cluster.rows[1:])
        table = np.array([(seq, line) for seq, line in first_of.values()], [("seq", "u8"), ("line", "u4")])
        rows, others = (np.array([pair[side] for pair in pairs], np.intp) for side in (0, 1))
        self._find("near_duplicate", table, Crossing(rows, others, rows))

    def _find(self, name: str, table: Table, crossing: Crossing, column: str = "", *, field: str = "") -> Table:
        """Count what was found, or let the rows leave; the rows that stay."""
        if not len(crossing.rows):
            return table
        if self._rules.action(name) == "keep":
            self._count(f"conflicting:{column}" if column else name, table, crossing.counted)
            return table
        self._leave(name, table, crossing, column or field or _FIELDS.get(name, ""))
        return np.delete(table, crossing.rows)

    def _count(self, name: str, table: Table, rows: Indexes) -> None:
        tally = self._settled.findings.setdefault(name, Tally())
        tally.count += len(rows)
        first = rows[np.argsort(table["seq"][rows])][:SHOWN_PLACES]
        self._first.setdefault(name, []).extend((int(table["seq"][row]), int(table["line"][row])) for row in first)

    def _leave(self, name: str, table: Table, crossing: Crossing, column: str) -> None:
        entries = np.empty(len(crossing.rows), LEAVING_TYPE)
        entries["seq"], entries["reason"] = table["seq"][crossing.rows], _REASONS.index(name)
        entries["other"], entries["other_line"] = table["seq"][crossing.others], table["line"][crossing.others]
        self._leaving.append(entries)
        if self._report is not None:
            order = np.argsort(entries["seq"])
            for row, other in zip(crossing.rows[order], crossing.others[order], strict=True):
                self._tell(name, table, row, other, column)

    def _tell(self, name: str, table: Table, row: Any, other: Any, column: str, *, counted: bool = True) -> None:
        if self._report is None:
            return
        seq, line = int(table["seq"][row]), int(table["line"][row])
        row_id = table["id"][row].decode("utf-8", "replace") if name == "duplicate_id" else f"row-{seq + 1:05d}"
        other_place = self.place_of(int(table["seq"][other]), int(table["line"][other]))
        self._report(
            Problem(
                line=line,
                row_number=seq - self._file_starts[bisect_right(self._file_starts, seq) - 1] + 1,
                row_id=row_id,
                field=column,
                reason=name,
                message=_TOLD[name].format(what=repr(row_id), other=other_place),
                action=self._rules.action(name) if counted else "drop",
                file=self._file_of(seq),
                counted=counted,
                seq=seq,
            )
        )

    def _staying(self, table: Table) -> Table:
        leaving = self._settled.leaving["seq"]
        if not len(leaving) or not len(table):
            return table
        place = np.minimum(np.searchsorted(leaving, table["seq"]), len(leaving) - 1)
        staying: Table = table[leaving[place] != table["seq"]]
        return staying

    def _merge_leaving(self) -> None:
        if self._leaving:
            self._settled.leaving = np.concatenate([self._settled.leaving, *self._leaving])
            self._settled.leaving.sort(order="seq")
            self._leaving = []
