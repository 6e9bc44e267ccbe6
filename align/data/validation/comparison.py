"""Compares all rows: finds repeated ids, repeated rows, contradictions and near duplicates."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align.data.validation.duplicates import (
    ROWS_IN_MEMORY,
    DuplicateIndex,
    Indexes,
    Matches,
    Table,
    contradictions,
    mirrored,
    repetitions,
)
from align.data.validation.label import LABEL_TYPE, MAX_LABEL_COLUMNS, MAX_LABEL_VALUES
from align.data.validation.scan import (
    CONTENT_TYPE,
    GIVEN_BAD,
    ID_TYPE,
    MADE,
    BlockResult,
    RowRules,
)
from align.data.validation.summary import SHOWN_PLACES, Problem, Tally
from align.records import is_list, place_of, place_word

LEAVING_TYPE = np.dtype([("seq", "u8"), ("reason", "u1"), ("other", "u8"), ("other_line", "u4")])
RENAMED_TYPE = np.dtype([("seq", "u8"), ("number", "u4")])

# By `drop_reason`: what a row's message says, and the field it names. Their order is the number in LEAVING_TYPE.
_MESSAGES = {
    "duplicate_id": ("{what} is also the id of {other}", "id"),
    "repeated_rows": ("repeats {other} entirely", ""),
    "conflicting_pairs": ("{other} has this pair the other way round", ""),
    "conflicting_completions": ("{other} has another completion for this prompt", "completion"),
    "conflicting_labels": ("{other} has another value for this prompt", ""),
    "repeated_prompts": ("has the prompt of {other}", "prompt"),
    "near_duplicate": ("is almost the same as {other}", ""),
}
_REASONS = list(_MESSAGES)


class RowComparison:
    """Collects the hashes of all rows, block by block, then finds the rows that repeat or contradict each other.

    Args:
        rules: the action for each finding.
        folder: for files of hashes, where there are many rows.
        files: names of the source's files in messages.
        rows_in_memory: see `DuplicateIndex`.
    """

    def __init__(self, rules: RowRules, folder: Path, files: list[str], *, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        self.findings: dict[str, Tally] = {}
        """Findings about kept rows; `conflicting:COLUMN` for labels."""
        self.leaving: Table = np.empty(0, LEAVING_TYPE)
        """Rows that are dropped, by seq: `reason` indexes `_REASONS`, `other` is the seq of the row they repeat or contradict."""
        self.renamed: Table = np.empty(0, RENAMED_TYPE)
        """Rows whose content id another row has too, by seq; number 0 if the other row's id was given in the file."""
        self._rules = rules
        self._folder = folder
        self._files = files
        self._file_starts: list[int] = []
        self._ids = DuplicateIndex(ID_TYPE, folder, "ids", rows_in_memory=rows_in_memory)
        self._contents = DuplicateIndex(CONTENT_TYPE, folder, "contents", rows_in_memory=rows_in_memory)
        self._labels: dict[str, DuplicateIndex | None] = {}
        self._label_values: dict[str, set[int]] = {}
        self._keys: list[tuple[int, int, str]] = []
        self._report: Callable[[Problem], None] | None = None
        self._new_leaving: list[Table] = []
        self._first: dict[str, list[tuple[int, int]]] = {}

    def add(self, result: BlockResult, first_seq: int, file_number: int) -> None:
        """Take the hashes of a block whose first row is number `first_seq` of the source."""
        # A file without rows starts where the next one does; bisect_right then finds the last of them, which has the row.
        self._file_starts += [first_seq] * (file_number + 1 - len(self._file_starts))
        for table in (result.ids, result.contents):
            table["seq"] += np.uint64(first_seq)
        self._ids.add(result.ids)
        self._contents.add(result.contents)
        for column, label in result.labels.items():
            self._add_label(column, label, first_seq)
        self._keys += [(seq + first_seq, line, text) for seq, line, text in result.keys]

    def forget_keys(self) -> None:
        """Drop the keys for the near-duplicate search, which was given up."""
        self._keys = []

    def compare(self, report: Callable[[Problem], None] | None, *, near_duplicates: bool) -> None:
        """Compare all rows.

        Args:
            report: called with a problem for every row that is dropped.
            near_duplicates: whether to search for them.
        """
        self._report = report
        # Each comparison looks only at the rows that the comparisons before it left.
        for table in self._ids.duplicates():
            self._compare_ids(table)
        self._merge_leaving()
        for table in self._contents.duplicates():
            self._compare_contents(table)
        self._merge_leaving()
        for column, index in self._labels.items():
            for table in index.duplicates() if index is not None else ():
                staying = self._staying(table)
                self._apply("conflicting_labels", staying, contradictions(staying, ("key",), "value"), column)
            self._merge_leaving()
        if near_duplicates:
            self._compare_keys()
        self._merge_leaving()
        self.renamed.sort(order="seq")
        for name, tally in self.findings.items():
            first = sorted(self._first[name])[:SHOWN_PLACES]
            tally.places = [(self._file_of(seq), line) for seq, line in first]

    def reason_for(self, leaving: Any, row_id: str) -> tuple[str, str]:
        """`drop_reason` and message for an entry of `leaving`."""
        reason = _REASONS[leaving["reason"]]
        return reason, self._message(reason, row_id, int(leaving["other"]), int(leaving["other_line"]))

    def _message(self, reason: str, row_id: str, other_seq: int, other_line: int) -> str:
        file = self._file_of(other_seq)
        other = f"{place_word(file)} {other_line}" if len(self._files) == 1 else place_of(file, other_line)
        return _MESSAGES[reason][0].format(what=repr(row_id), other=other)

    def _file_of(self, seq: int) -> str:
        return self._files[bisect_right(self._file_starts, seq) - 1]

    def _add_label(self, column: str, label: Table | None, first_seq: int) -> None:
        if column not in self._labels:
            if len(self._labels) >= MAX_LABEL_COLUMNS:
                return
            self._labels[column] = DuplicateIndex(LABEL_TYPE, self._folder, f"label-{len(self._labels)}")
        index = self._labels[column]
        if index is not None and label is not None:
            values = self._label_values.setdefault(column, set())
            values.update(np.unique(label["value"]).tolist())
            if len(values) <= MAX_LABEL_VALUES:
                label["seq"] += np.uint64(first_seq)
                index.add(label)
                return
        # Set to None, not deleted: a later block must not start the column again.
        self._labels[column] = None

    def _compare_ids(self, table: Table) -> None:
        """A given id belongs to the first row that has it, usable or not. A content id that is taken gets a number appended."""
        given = table[table["origin"] != MADE]
        same = repetitions(given, "key")
        bad = given["origin"][same.rows] == GIVEN_BAD
        for position in np.flatnonzero(bad):  # these rows are dropped already; the repeated id is one more problem of theirs
            self._report_problem("duplicate_id", given, same.rows[position], same.others[position], "id", counted=False)
        self._drop("duplicate_id", given, Matches(same.rows[~bad], same.others[~bad], same.counted), "id")
        made = table[table["origin"] == MADE]
        taken = np.isin(made["key"], given["key"])
        _, first, group = np.unique(made["key"], return_index=True, return_inverse=True)
        number = np.arange(len(made)) - first[group] + 1
        renamed = np.empty(len(made), RENAMED_TYPE)
        renamed["seq"], renamed["number"] = made["seq"], np.where(taken, 0, number)
        # The first row with a content id keeps it as it is.
        self.renamed = np.concatenate([self.renamed, renamed[renamed["number"] != 1]])

    def _compare_contents(self, table: Table) -> None:
        kind = self._rules.kind
        table = self._staying(table)
        table = self._apply("repeated_rows", table, repetitions(table, "key", "first", "second"))
        match kind.contradiction:
            case "conflicting_pairs":
                table = self._apply("conflicting_pairs", table, mirrored(table))
            case "conflicting_completions":
                table = self._apply("conflicting_completions", table, contradictions(table, ("key",), "first"))
            case "conflicting_labels":
                found = contradictions(table, ("key", "first"), "second")
                table = self._apply("conflicting_labels", table, found, field=kind.contents[1])
        if kind.has_prompt:
            self._apply("repeated_prompts", table, repetitions(table, "key"))

    def _compare_keys(self) -> None:
        """Find near duplicates among different texts; equal texts were counted as repetitions."""
        from align.data.quality.near_duplicate import near_duplicate_clusters

        gone = set(self.leaving["seq"].tolist())
        first_of: dict[str, tuple[int, int]] = {}
        for seq, line, text in self._keys:
            if seq not in gone:
                first_of.setdefault(text, (seq, line))
        clusters = near_duplicate_clusters(first_of).clusters
        pairs = sorted((row, cluster.rows[0]) for cluster in clusters for row in cluster.rows[1:])
        table = np.array([(seq, line) for seq, line in first_of.values()], [("seq", "u8"), ("line", "u4")])
        rows, others = (np.array([pair[side] for pair in pairs], np.intp) for side in (0, 1))
        self._apply("near_duplicate", table, Matches(rows, others, rows))

    def _apply(self, name: str, table: Table, matches: Matches, column: str = "", *, field: str = "") -> Table:
        """Count the matches or drop their rows, depending on the check's action. Returns the remaining rows."""
        if not len(matches.rows):
            return table
        if self._rules.action(name) == "keep":
            self._count(f"conflicting:{column}" if column else name, table, matches.counted)
            return table
        self._drop(name, table, matches, column or field or _MESSAGES[name][1])
        return np.delete(table, matches.rows)

    def _count(self, name: str, table: Table, rows: Indexes) -> None:
        tally = self.findings.setdefault(name, Tally())
        tally.count += len(rows)
        first = rows[np.argsort(table["seq"][rows])][:SHOWN_PLACES]
        self._first.setdefault(name, []).extend((int(table["seq"][row]), int(table["line"][row])) for row in first)

    def _drop(self, name: str, table: Table, matches: Matches, column: str) -> None:
        entries = np.empty(len(matches.rows), LEAVING_TYPE)
        entries["seq"], entries["reason"] = table["seq"][matches.rows], _REASONS.index(name)
        entries["other"], entries["other_line"] = table["seq"][matches.others], table["line"][matches.others]
        self._new_leaving.append(entries)
        if self._report is not None:
            order = np.argsort(entries["seq"])
            for row, other in zip(matches.rows[order], matches.others[order], strict=True):
                self._report_problem(name, table, row, other, column)

    def _report_problem(self, name: str, table: Table, row: Any, other: Any, column: str, *, counted: bool = True) -> None:
        if self._report is None:
            return
        seq = int(table["seq"][row])
        # The id was cut to ID_SHOWN_BYTES, perhaps inside a character.
        row_id = table["id"][row].decode("utf-8", "replace") if name == "duplicate_id" else f"row-{seq + 1:05d}"
        number, file = int(table["line"][row]), self._file_of(seq)
        in_list = is_list(file)
        self._report(
            Problem(
                line=0 if in_list else number,
                element=number if in_list else 0,
                pointer=f"/{number - 1}" if in_list else "",
                row_number=seq - self._file_starts[bisect_right(self._file_starts, seq) - 1] + 1,
                row_id=row_id,
                field=column,
                reason=name,
                message=self._message(name, row_id, int(table["seq"][other]), int(table["line"][other])),
                action=self._rules.action(name) if counted else "drop",
                file=file,
                counted=counted,
                seq=seq,
            )
        )

    def _staying(self, table: Table) -> Table:
        leaving = self.leaving["seq"]
        if not len(leaving) or not len(table):
            return table
        # searchsorted gives len(leaving) for a seq behind the last one, which is no index.
        place = np.minimum(np.searchsorted(leaving, table["seq"]), len(leaving) - 1)
        staying: Table = table[leaving[place] != table["seq"]]
        return staying

    def _merge_leaving(self) -> None:
        if self._new_leaving:
            self.leaving = np.concatenate([self.leaving, *self._new_leaving])
            self.leaving.sort(order="seq")
            self._new_leaving = []
