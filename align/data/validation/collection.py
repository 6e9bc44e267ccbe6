"""Validates a source: one pass over its rows, a comparison of all rows, then the kept and dropped rows, in order.

Only the comparison decides which rows are dropped, so usable rows are first written to a temporary file and read back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from align.config.inputs import DataInput
from align.data.quality.overlap import OVERLAPS_EVALUATION
from align.data.source import Source
from align.data.validation.block import Block, marks_of, scan_blocks
from align.data.validation.comparison import RowComparison
from align.data.validation.duplicates import ROWS_IN_MEMORY
from align.data.validation.scan import BlockResult, RecordChecks, RowRules, Wanted, rules_of
from align.data.validation.summary import Problem, Summary, Tally, catalogue_name, findings_in_order
from align.records import Drop, Record, place_of
from align.system_errors import explained

NEAR_DUPLICATE_ROWS = 200_000
"""In larger files near duplicates are searched for on request only: the search takes longer than all other checks together."""
MAX_COLUMNS = 1000
"""About the most names of unused columns that are kept: rows whose keys are data would fill the memory."""

Progress = Callable[[int, int], None]
"""Called with rows and bytes so far."""


class Validator:
    """One pass over a source, and the comparison of its rows.

    Args:
        folder: for files of hashes; the caller removes it.
        near_duplicates: whether to search for them; None: up to `NEAR_DUPLICATE_ROWS` rows.
        rows_file: where usable rows and drops are written; None: nowhere.
    """

    def __init__(
        self,
        source: Source,
        rules: RowRules,
        folder: Path,
        *,
        on_problem: Callable[[Problem], None] | None = None,
        near_duplicates: bool | None = None,
        rows_file: IO[bytes] | None = None,
        rows_in_memory: int = ROWS_IN_MEMORY,
    ) -> None:
        self.summary = Summary(source.shown, rules.kind, [file.shown for file in source.files])
        self.comparison = RowComparison(rules, folder, self.summary.files, rows_in_memory=rows_in_memory)
        self._source = source
        self._rules = rules
        self._report = on_problem
        self._near = near_duplicates
        self._rows_file = rows_file
        self._file_starts: dict[int, int] = {}
        # Equals no row's seq, which is -1 for a problem of a file.
        self._error_row = -2

    def run(
        self,
        *,
        model_checks: RecordChecks | None = None,
        on_progress: Progress | None = None,
        processes: int | None = None,
        blocks: Iterable[Block] | None = None,
    ) -> None:
        """Check all rows, those of `blocks` or else of the source's files."""
        self._check_first_bytes()
        bytes_done = 0

        # A function, since it is called for every block: the search for near duplicates may be given up in between.
        def wanted() -> Wanted:
            return Wanted(rows=self._rows_file is not None, keys=self._near is not False, file_names=len(self._source.files) > 1)

        def take(block: Block, result: BlockResult) -> None:
            nonlocal bytes_done
            self._take(block, result)
            bytes_done += block.size_bytes
            if on_progress is not None:
                on_progress(self.summary.rows_in, bytes_done)

        scan_blocks(self._source, self._rules, wanted, take, model_checks, processes=processes, blocks=blocks)
        self._compare()

    def _take(self, block: Block, result: BlockResult) -> None:
        """Number a block's rows within the source, count what is in it and write its rows."""
        summary, first = self.summary, self.summary.rows_in
        in_file = first - self._file_starts.setdefault(block.file_number, first)
        if self._near is None and first + result.units > NEAR_DUPLICATE_ROWS:
            self._near = False
            self.comparison.forget_keys()
        # A block that was scanned ahead may still carry keys.
        if self._near is False:
            result.keys = []
        self.comparison.add(result, first, block.file_number)
        for number, problem in enumerate(result.problems):
            seq = first + problem.row_number
            row_id, row_number = problem.row_id or f"row-{seq + 1:05d}", in_file + problem.row_number + 1
            result.problems[number] = replace(problem, row_number=row_number, row_id=row_id, seq=seq)
            self._count(result.problems[number])
        if self._rows_file is not None:
            self._write(self._rows_file, result, block.file_number, first)
        for name, tally in result.findings.items():
            summary.findings.setdefault(name, Tally()).merge(tally)
        summary.findings.setdefault("chosen_longer", Tally()).count += result.chosen_longer
        if len(summary.unused) < MAX_COLUMNS:
            summary.unused.update(result.unused)
        summary.reading.merge(result.reading)
        summary.rows_in += result.units
        summary.rows_read += result.units - result.bad

    def _count(self, problem: Problem) -> None:
        self.summary.count(problem)
        self.summary.actions[problem.reason] = self._rules.action(problem.reason)
        if problem.counted:
            self.summary.dropped[problem.reason] += 1
        # A row with several problems is one error.
        if problem.action == "error" and problem.seq != self._error_row:
            self.summary.errors += 1
            self._error_row = problem.seq
        if self._report is not None:
            self._report(problem)

    def _write(self, stream: IO[bytes], result: BlockResult, file_number: int, first: int) -> None:
        """Write the rows (R) and drops (D) of a block in order, a line each: seq, number of the file, R or D, content."""
        lines = [
            # The id stands apart from the rest, because the comparison of all rows may still change it.
            (seq + first, b"R" + json.dumps([row_id, overlap], ensure_ascii=False).encode() + b"\t" + rest)
            for seq, row_id, overlap, rest in result.rows
        ]
        lines += [(seq, b"D" + drop.model_dump_json().encode()) for seq, drop in _drops(result.problems).items()]
        for seq, line in sorted(lines):
            stream.write(b"%d %d %s\n" % (seq, file_number, line))

    def _compare(self) -> None:
        summary = self.summary
        summary.near_duplicates = self._near is not False
        self.comparison.compare(self._count, near_duplicates=summary.near_duplicates)
        for name, tally in self.comparison.findings.items():
            summary.findings.setdefault(name, Tally()).merge(tally)
        summary.findings = findings_in_order(summary.findings)
        summary.actions.update(
            {name: self._rules.action(catalogue_name(name)) for name in summary.findings if name != "chosen_longer"}
        )

    def _check_first_bytes(self) -> None:
        for file in self._source.files:
            for name, message in marks_of(file).items():
                if self._rules.action(name) == "keep":
                    self.summary.findings.setdefault(name, Tally()).add(file.shown, 1)
                else:
                    self._count(Problem(1, 1, "", "", name, message, file=file.shown, counted=False))


@dataclass(frozen=True)
class Kept:
    """A usable row."""

    file_number: int
    """Index of its file in the source."""
    id: str
    content: bytes
    """The rest of the record's line in `rows.jsonl`, from the comma after the id to the line end."""

    @property
    def line(self) -> bytes:
        """The record as a line of `rows.jsonl`."""
        return b'{"id":' + json.dumps(self.id, ensure_ascii=False).encode() + self.content

    def within(self, part: str) -> Kept:
        """The row as a row of a mixture's part, whose name precedes its id."""
        return Kept(self.file_number, f"{part}/{self.id}", self.content)


class Collection:
    """The rows of a source. Readable only inside `collect_rows`."""

    def __init__(self, source: Source, validator: Validator, rows_path: Path) -> None:
        self.summary = validator.summary
        self._source = source
        self._comparison = validator.comparison
        self._rows_path = rows_path

    def __iter__(self) -> Iterator[Kept | Drop]:
        """Every row, kept or dropped, in the order of the source. May be iterated several times."""
        leaving, renamed = _Pointer(self._comparison.leaving), _Pointer(self._comparison.renamed)
        with self._rows_path.open("rb") as stream:
            for line in stream:
                number, file_number, rest = line.split(b" ", 2)
                if rest.startswith(b"D"):
                    yield Drop.model_validate_json(rest[1:])
                    continue
                seq, (head, _, content) = int(number), rest[1:].partition(b"\t")
                row_id, overlap = json.loads(head)
                if (again := renamed.at(seq)) is not None:
                    # 0: this content id is the given id of another row, so the row's number makes it unique.
                    row_id = f"{row_id}-{again['number']}" if again["number"] else f"{row_id}-row-{seq + 1:05d}"
                if (gone := leaving.at(seq)) is not None:
                    yield self._drop(int(file_number), row_id, content, *self._comparison.reason_for(gone, row_id))
                elif overlap:
                    yield self._drop(int(file_number), row_id, content, OVERLAPS_EVALUATION, overlap)
                else:
                    yield Kept(int(file_number), row_id, content)

    def records(self) -> Iterator[Record]:
        """The usable rows."""
        record = self.summary.kind.record
        return (record.model_validate_json(row.line) for row in self if isinstance(row, Kept))

    def drops(self) -> Iterator[Drop]:
        """The dropped rows."""
        return (row for row in self if isinstance(row, Drop))

    def _drop(self, file_number: int, row_id: str, content: bytes, reason: str, message: str) -> Drop:
        # `content` begins with the comma behind the id.
        number = json.loads(b"{" + content[1:])["line"]
        place = place_of(self._source.files[file_number].shown, number)
        return Drop(id=row_id, drop_reason=reason, detail=f"{place}: {message}")


@contextmanager
def collect_rows(
    source: Source,
    rules: RowRules,
    *,
    folder: Path | None = None,
    on_problem: Callable[[Problem], None] | None = None,
    model_checks: RecordChecks | None = None,
    near_duplicates: bool = False,
    on_progress: Progress | None = None,
    processes: int | None = None,
    blocks: Iterable[Block] | None = None,
) -> Iterator[Collection]:
    """Validate a source and keep its rows on disk until the end of the `with`.

    A row without an id gets one made from its content: the first 16 hexadecimal digits of the SHA-256 of its fields as JSON (in
    the order of the schema, without spaces; not id, line and file). Rows with equal content get `-2`, `-3`, … behind it.

    Args:
        folder: for temporary files, which hold a copy of the rows; None: the system's temporary folder.
        blocks: rows to check instead of those of the source's files.
    Raises:
        DataError, EnvironmentProblem, RecipeError: see `validate_source`.
    """
    with tempfile.TemporaryDirectory(prefix="align-", dir=folder) as temporary:
        rows_path = Path(temporary) / "rows"
        near = near_duplicates or rules.checks.get("near_duplicate", "keep") != "keep"
        # Closed before the rows are read back: none may be left in the buffer.
        with explained(rows_path), rows_path.open("wb") as stream:
            validator = Validator(source, rules, Path(temporary), on_problem=on_problem, near_duplicates=near, rows_file=stream)
            validator.run(model_checks=model_checks, on_progress=on_progress, processes=processes, blocks=blocks)
        yield Collection(source, validator, rows_path)


def valid_rows(source: Source, spec: DataInput, *, blocks: Iterable[Block] | None = None) -> Iterator[Record]:
    """The usable rows of a source, or of `blocks`. Others are skipped without a message; `collect_rows` reports them."""
    with collect_rows(source, rules_of(spec), blocks=blocks) as collection:
        yield from collection.records()


class _Pointer:
    """Entries of a table sorted by seq, looked up in ascending order."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._seqs = table["seq"]
        self._place = 0

    def at(self, seq: int) -> Any:
        """The entry for `seq`, or None."""
        while self._place < len(self._seqs) and self._seqs[self._place] < seq:
            self._place += 1
        return self._table[self._place] if self._place < len(self._seqs) and self._seqs[self._place] == seq else None


def _drops(problems: list[Problem]) -> dict[int, Drop]:
    """One drop per unusable row. Its reason is the row's first problem; `detail` has all of them."""
    by_row: dict[int, list[Problem]] = {}
    for problem in problems:
        by_row.setdefault(problem.seq, []).append(problem)
    return {
        seq: Drop(id=row[0].row_id, drop_reason=row[0].reason, detail="; ".join(problem.render() for problem in row))
        for seq, row in by_row.items()
    }
