"""The rows of a source that can be used, and those that leave, in the order of the source.

Which rows leave is known only when all were seen, so they are written to a file first and read back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from align.config.inputs import DataInput
from align.data.source import Source
from align.data.validation.block import Block
from align.data.validation.problem import Problem
from align.data.validation.scan import RecordChecks
from align.data.validation.scanned import RowRules, Scanned
from align.data.validation.survey import Progress, Summary, Survey, rules_of
from align.records import Drop, Record


@dataclass(frozen=True)
class Kept:
    """A row that can be used."""

    file_number: int
    """Which of the source's files it is from."""
    id: str
    content: bytes
    """The rest of the record's line in `rows.jsonl`, from the comma behind the id to the line end."""

    @property
    def line(self) -> bytes:
        """The record as a line of `rows.jsonl`."""
        return b'{"id":' + json.dumps(self.id, ensure_ascii=False).encode() + self.content

    def within(self, part: str) -> Kept:
        """The row as one of a mixture's part."""
        return Kept(self.file_number, f"{part}/{self.id}", self.content)


class Collection:
    """What a source gave. To be read inside `collect_rows` only."""

    def __init__(self, source: Source, survey: Survey, spool: Path) -> None:
        self.summary: Summary = survey.summary
        self._source = source
        self._survey = survey
        self._spool = spool

    def __iter__(self) -> Iterator[Kept | Drop]:
        """Every row, either kept or dropped, in the order of the source; it can be asked for again."""
        settled = self._survey.settled
        leaving, renamed = _Pointer(settled.leaving), _Pointer(settled.renamed)
        with self._spool.open("rb") as stream:
            for line in stream:
                number, file_number, rest = line.split(b" ", 2)
                seq = int(number)
                gone = leaving.at(seq)
                if rest.startswith(b"D"):
                    yield Drop.model_validate_json(rest[1:])
                    continue
                quoted, _, content = rest[1:].partition(b"\t")
                row_id = json.loads(quoted)
                again = renamed.at(seq)
                if again is not None:
                    row_id = f"{row_id}-{again['number']}" if again["number"] else f"{row_id}-row-{seq + 1:05d}"
                if gone is not None:
                    yield self._drop(int(file_number), seq, row_id, gone, content)
                else:
                    yield Kept(int(file_number), row_id, content)

    def records(self) -> Iterator[Record]:
        """The rows that can be used."""
        record = self.summary.kind.record
        return (record.model_validate_json(row.line) for row in self if isinstance(row, Kept))

    def drops(self) -> Iterator[Drop]:
        """The rows that leave."""
        return (row for row in self if isinstance(row, Drop))

    def _drop(self, file_number: int, seq: int, row_id: str, leaving: Any, content: bytes) -> Drop:
        reason, message = self._survey.cross.told(leaving, row_id)
        line = json.loads(b"{" + content[1:])["line"]
        return Drop(id=row_id, drop_reason=reason, detail=f"{self._source.files[file_number].shown}:{line}: {message}")


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
        folder: where the temporary files go; None: the system's place for them. The rows are there once more.
        blocks: the rows, where they are not read from the source's files.
    Raises:
        DataError, EnvironmentProblem, RecipeError: see `validate_source`.
    """
    with tempfile.TemporaryDirectory(prefix="align-", dir=folder) as temporary:
        spool = Path(temporary) / "rows"
        near = near_duplicates or rules.checks.get("near_duplicate", "keep") != "keep"
        survey = Survey(source, rules, Path(temporary), on_problem=on_problem, near_duplicates=near, want_rows=True)
        with spool.open("wb") as stream:
            survey.run(
                model_checks=model_checks,
                on_progress=on_progress,
                processes=processes,
                blocks=blocks,
                on_scanned=lambda scanned, block: _write(stream, scanned, block),
            )
        yield Collection(source, survey, spool)


def valid_rows(source: Source, spec: DataInput) -> Iterator[Record]:
    """The rows of a source that can be used; what cannot is left out without a word (`collect_rows` says what)."""
    with collect_rows(source, rules_of(spec)) as collection:
        yield from collection.records()


class _Pointer:
    """Entries of a table sorted by seq, asked for in ascending order."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._seqs = table["seq"]
        self._place = 0

    def at(self, seq: int) -> Any:
        """The entry for `seq`, or None."""
        while self._place < len(self._seqs) and self._seqs[self._place] < seq:
            self._place += 1
        return self._table[self._place] if self._place < len(self._seqs) and self._seqs[self._place] == seq else None


def _write(stream: IO[bytes], scanned: Scanned, block: Block) -> None:
    """Rows and drops of a block, in order of the source."""
    drops = _drops(scanned.problems)
    lines = [(seq, b"R" + json.dumps(row_id, ensure_ascii=False).encode() + b"\t" + rest) for seq, row_id, rest in scanned.rows]
    lines += [(seq, b"D" + drop.model_dump_json().encode()) for seq, drop in drops.items()]
    for seq, line in sorted(lines):
        stream.write(b"%d %d %s\n" % (seq, block.file_number, line))


def _drops(problems: list[Problem]) -> dict[int, Drop]:
    """One drop per unusable row, with the first thing that is wrong with it. `detail` has all of them."""
    by_row: dict[int, list[Problem]] = {}
    for problem in problems:
        by_row.setdefault(problem.seq, []).append(problem)
    return {
        seq: Drop(id=row[0].row_id, drop_reason=row[0].reason, detail="; ".join(problem.render() for problem in row))
        for seq, row in by_row.items()
    }
