"""Cuts a source into blocks of rows and scans them in one or several processes. The result does not depend on their number."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType

from align.data.source import Source, SourceFile, read_file
from align.data.validation.scan import BlockResult, RecordChecks, RowRules, Wanted, scan
from align.errors import EnvironmentProblem
from align.formats.lines import read_json_lines
from align.formats.raw import MAX_LINE_BYTES, RawRow
from align.runtime.executor import Inline, executor_for
from align.runtime.item_flow import WorkerDied

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 8192
SMALL_BYTES = 48 << 20
"""Below this, starting a second process takes longer than it saves."""
LINE_FORMATS = (".jsonl", ".ndjson")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
START_BYTES = 64 << 10
"""Bytes read to see how a file begins; in a first line longer than this, a CR LF goes unnoticed."""


@dataclass(frozen=True)
class Block:
    """Some rows of one file."""

    file_number: int
    """Which of the source's files."""
    data: bytes | list[RawRow]
    """Whole lines of JSON Lines that are not parsed yet, or rows."""
    lines_before: int = 0
    """Lines of the file before the first of `data`, where it is bytes."""
    rows_before: int = 0
    """Rows of the file before the first of `data`, where it is rows."""

    @property
    def size_bytes(self) -> int:
        """Size in the file; 0 where it is not known."""
        return len(self.data) if isinstance(self.data, bytes) else 0


def blocks_of(source: Source, opened: Mapping[int, Iterator[RawRow]] = MappingProxyType({})) -> Iterator[Block]:
    """All rows of a source, file by file, as far as its parts are not limited.

    Args:
        opened: rows of files that are open already, by the file's number.
    Raises:
        DataError, EnvironmentProblem: see `read_file`.
    """
    left = dict[str | None, int]()
    for number, file in enumerate(source.files):
        if file.max_rows is None and number not in opened and (path := _lines_path(file)) is not None:
            yield from _cut(path, number)
            continue
        limit = None if file.max_rows is None else left.get(file.part, file.max_rows)
        if limit == 0:
            continue
        rows = 0
        for block in _collected(islice(opened.get(number) or read_file(file), limit), number):
            rows = block.rows_before + len(block.data)
            yield block
        if limit is not None:
            left[file.part] = limit - rows


def scan_blocks(
    source: Source,
    rules: RowRules,
    wanted: Callable[[], Wanted],
    take: Callable[[Block, BlockResult], None],
    checks: RecordChecks | None = None,
    *,
    processes: int | None = None,
    blocks: Iterable[Block] | None = None,
) -> None:
    """Scan every block of a source.

    Args:
        wanted: called for every block before it is scanned.
        take: called with every block and what is in it, in the order of the source.
        checks: those that need a model; they run in this process.
        processes: number of processes; None: as many as save time.
        blocks: rows to scan instead of those of the source's files.
    Raises:
        EnvironmentProblem: if a process dies.
        DataError: see `read_file`.
    """
    count = processes if processes is not None else _worthwhile_processes(source)
    # One block ahead keeps a process busy, and memory holds few blocks.
    executor = executor_for(count if checks is None else 1, items_ahead=1)
    scan_one = _ScanBlock(rules, source, checks)
    try:
        for is_text, some in groupby(blocks or blocks_of(source), lambda block: isinstance(block.data, bytes)):
            # Parsed rows are scanned in this process: sending them takes as long as scanning them.
            (executor if is_text else Inline()).map(
                scan_one,
                ((block, wanted()) for block in some),
                on_done=lambda item, scanned: take(item[0], scanned),
                in_order=True,
            )
    except WorkerDied as error:
        raise EnvironmentProblem(
            f"{source.shown}: a process that scanned rows was killed", hint="Is there enough memory? Run it again."
        ) from error


@dataclass(frozen=True)
class _ScanBlock:
    """The work on one block."""

    rules: RowRules
    source: Source
    checks: RecordChecks | None

    def __call__(self, item: tuple[Block, Wanted]) -> BlockResult:
        block, wanted = item
        rows = _numbered(block.data, block.lines_before) if isinstance(block.data, bytes) else block.data
        return scan(rows, self.rules, self.source.files[block.file_number], wanted, self.checks, block.rows_before)


def marks_of(file: SourceFile) -> dict[str, str]:
    """Findings about a text file that its first bytes show: check → message."""
    if not isinstance(file.origin, Path) or file.format in (".parquet", ".arrow"):
        return {}
    start, marks = _start(file.origin), {}
    if start.startswith(BYTE_ORDER_MARK):
        marks["byte_order_mark"] = "the file begins with a byte order mark; expected UTF-8 without one"
    if start.partition(b"\n")[0].endswith(b"\r"):
        marks["crlf_line_ends"] = "the first line ends in CR LF; expected LF"
    return marks


def _start(path: Path) -> bytes:
    import gzip

    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            return bytes(stream.read(START_BYTES))
    except (OSError, EOFError, zlib.error):
        return b""  # reading the rows will report it


def _worthwhile_processes(source: Source) -> int:
    # Cores that this process may use: a scheduler or container may allow fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = [path.stat().st_size for file in source.files if (path := _lines_path(file)) is not None]
    return min(cores, 4) if sum(sizes) > SMALL_BYTES else 1


def _lines_path(file: SourceFile) -> Path | None:
    """The path of a plain JSON Lines file, which can be cut at line ends; None for any other.

    A file that begins with anything else than an object is left to the reader, which names what is wrong with it.
    """
    if not isinstance(file.origin, Path) or not file.origin.name.lower().endswith(LINE_FORMATS):
        return None
    return file.origin if _start(file.origin).removeprefix(BYTE_ORDER_MARK).startswith(b"{") else None


def _cut(path: Path, number: int) -> Iterator[Block]:
    """Blocks of whole lines. Of a line that is too long, only enough is kept to show its length."""
    lines = 0
    with path.open("rb") as stream:
        rest = b""
        while chunk := stream.read(BLOCK_BYTES):
            end = chunk.rfind(b"\n") + 1
            if not end:
                rest = (rest + chunk)[: MAX_LINE_BYTES + 2]
                continue
            data = rest + chunk[:end] if len(rest) <= MAX_LINE_BYTES else rest + chunk[chunk.find(b"\n") : end]
            yield Block(number, data, lines)
            lines += data.count(b"\n")
            rest = chunk[end:]
        if rest:
            yield Block(number, rest, lines)


def _numbered(data: bytes, lines_before: int) -> Iterator[RawRow]:
    """Rows of a block with their line in the file."""
    # Only the file's first line may begin with a byte order mark: the empty line keeps the reader from looking for one.
    shift = lines_before - 1 if lines_before else 0
    for line, row in read_json_lines(io.BytesIO(b"\n" + data if lines_before else data)):
        yield line + shift, row


def _collected(rows: Iterator[RawRow], number: int) -> Iterator[Block]:
    before = 0
    while block := list(islice(rows, BLOCK_ROWS)):
        yield Block(number, block, rows_before=before)
        before += len(block)
