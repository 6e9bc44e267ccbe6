"""One pass over the rows of a source, and the comparison of all of them at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from align.config.inputs import DataInput
from align.config.row_checks import Action
from align.data.source import Source
from align.data.validation.block import Block, marks_of, scan_blocks
from align.data.validation.cross_check import CrossCheck, Settled
from align.data.validation.finding import catalogue_name, finding_note, findings_in_order
from align.data.validation.ledger import ROWS_IN_MEMORY
from align.data.validation.problem import Problem
from align.data.validation.scan import RecordChecks
from align.data.validation.scanned import RowRules, Scanned, Tally, Wanted
from align.rows import DataKind
from align.rows.row import Reading

NEAR_DUPLICATE_ROWS = 200_000
"""Near duplicates are not searched for beyond, unless asked for: that takes longer than everything else together."""

SHOWN_COLUMNS = 20
MAX_COLUMNS = 1000
"""Unused columns that are remembered, about: rows whose keys are data would fill the memory."""

Progress = Callable[[int, int], None]
"""Told rows and bytes so far."""


@dataclass
class Summary:
    """What a source holds."""

    shown: str
    """How messages call the source."""
    kind: DataKind[Any]
    files: list[str] = field(default_factory=list)
    rows_in: int = 0
    """Rows found, good and bad; a list of ranked completions counts once for every pair in it."""
    rows_read: int = 0
    """Rows in which nothing is wrong by themselves; some of them may leave because of others."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that leave, by the first thing that is wrong with them."""
    errors: int = 0
    """Rows for which the input cannot be used."""
    problems: dict[str, Tally] = field(default_factory=dict)
    """Everything that is wrong with the rows that leave, by `drop_reason`; a row may be in several."""
    actions: dict[str, Action] = field(default_factory=dict)
    """What is done about each problem and finding."""
    findings: dict[str, Tally] = field(default_factory=dict)
    """What should be known of the rows that stay."""
    unused: dict[str, None] = field(default_factory=dict)
    """Columns (and `field.key` of messages) that no field took."""
    reading: Reading = field(default_factory=Reading)
    """How the rows were understood."""
    cut_short: bool = False
    """Whether a file could not be read to its end, so that nobody knows what is missing."""
    near_duplicates: bool = False
    """Whether near duplicates were searched for."""

    @property
    def rows_out(self) -> int:
        """Rows that stay: rows_in = rows_out + the sum of `dropped`."""
        return self.rows_in - self.dropped.total()

    @property
    def usable(self) -> bool:
        """Whether the input can be used as it is."""
        return not self.errors and not self.cut_short and self.rows_out > 0

    def counts(self) -> dict[str, int]:
        """How often each finding occurs, without those that do not occur."""
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
        return [f"columns not used: {', '.join(map(str, names[:SHOWN_COLUMNS]))}{more}"] if names else []

    def count(self, problem: Problem) -> None:
        """Take a problem into the counts."""
        self.problems.setdefault(problem.reason, Tally()).add(problem.file, problem.line)
        self.cut_short = self.cut_short or problem.ends_file


def rules_of(spec: DataInput) -> RowRules:
    """How the rows of an input of a recipe are looked at."""
    return RowRules(spec.row_kind, spec.max_characters, spec.on_invalid, spec.checks)


class Survey:
    """One pass over a source, and the comparison of its rows.

    Args:
        folder: for files of hashes; whoever made it removes it.
        want_rows: whether `on_scanned` is to get the usable rows.
    """

    def __init__(
        self,
        source: Source,
        rules: RowRules,
        folder: Path,
        *,
        on_problem: Callable[[Problem], None] | None = None,
        near_duplicates: bool | None = None,
        want_rows: bool = False,
        rows_in_memory: int = ROWS_IN_MEMORY,
    ) -> None:
        self.summary = Summary(source.shown, rules.kind, [file.shown for file in source.files])
        self.settled = Settled()
        self.cross = CrossCheck(rules, folder, self.summary.files, rows_in_memory=rows_in_memory)
        self._source = source
        self._rules = rules
        self._report = on_problem
        self._near = near_duplicates
        self._want_rows = want_rows
        self._file_starts: dict[int, int] = {}
        self._error_row = -2

    def run(
        self,
        *,
        model_checks: RecordChecks | None = None,
        on_progress: Progress | None = None,
        processes: int | None = None,
        on_scanned: Callable[[Scanned, Block], None] | None = None,
        blocks: Iterable[Block] | None = None,
    ) -> None:
        """Look at all rows.

        Args:
            on_scanned: gets each block with its rows numbered within the source.
            blocks: the rows, where they are not read from the source's files.
        """
        self._note_marks()
        bytes_done = 0

        def wanted() -> Wanted:
            return Wanted(rows=self._want_rows, keys=self._near is not False)

        def take(block: Block, scanned: Scanned) -> None:
            nonlocal bytes_done
            self._take(scanned, block.file_number)
            if on_scanned is not None:
                on_scanned(scanned, block)
            bytes_done += block.size_bytes
            if on_progress is not None:
                on_progress(self.summary.rows_in, bytes_done)

        scan_blocks(self._source, self._rules, wanted, take, model_checks, processes=processes, blocks=blocks)
        self._settle()

    def _take(self, scanned: Scanned, file_number: int) -> None:
        """Number a block's rows within the source and count what is in it."""
        summary, first = self.summary, self.summary.rows_in
        in_file = first - self._file_starts.setdefault(file_number, first)
        if self._near is None and first + scanned.units > NEAR_DUPLICATE_ROWS:
            self._near = False
            self.cross.forget_keys()
        if self._near is False:
            scanned.keys = []
        self.cross.add(scanned, first, file_number)
        for number, problem in enumerate(scanned.problems):
            seq = first + problem.row_number
            row_id = problem.row_id or f"row-{seq + 1:05d}"
            scanned.problems[number] = problem = replace(
                problem, row_number=in_file + problem.row_number + 1, row_id=row_id, seq=seq
            )
            self._count(problem)
        scanned.rows = [(seq + first, row_id, rest) for seq, row_id, rest in scanned.rows]
        for name, tally in scanned.findings.items():
            summary.findings.setdefault(name, Tally()).merge(tally)
        summary.findings.setdefault("chosen_longer", Tally()).count += scanned.chosen_longer
        if len(summary.unused) < MAX_COLUMNS:
            summary.unused.update(scanned.unused)
        summary.reading.merge(scanned.reading)
        summary.rows_in += scanned.units
        summary.rows_read += scanned.units - scanned.bad

    def _count(self, problem: Problem) -> None:
        self.summary.count(problem)
        self.summary.actions[problem.reason] = self._rules.action(problem.reason)
        if problem.counted:
            self.summary.dropped[problem.reason] += 1
        if problem.action == "error" and problem.seq != self._error_row:
            self.summary.errors += 1
            self._error_row = problem.seq
        if self._report is not None:
            self._report(problem)

    def _settle(self) -> None:
        summary = self.summary
        summary.near_duplicates = self._near is not False
        self.settled = self.cross.settle(self._count, near_duplicates=summary.near_duplicates)
        for name, tally in self.settled.findings.items():
            summary.findings.setdefault(name, Tally()).merge(tally)
        summary.findings = findings_in_order(summary.findings)
        summary.actions.update(
            {name: self._rules.action(catalogue_name(name)) for name in summary.findings if name != "chosen_longer"}
        )

    def _note_marks(self) -> None:
        for file in self._source.files:
            for name, told in marks_of(file).items():
                if self._rules.action(name) == "keep":
                    self.summary.findings.setdefault(name, Tally()).add(file.shown, 1)
                else:
                    self._count(Problem(1, 1, "", "", name, told, ends_file=False, file=file.shown, counted=False))
