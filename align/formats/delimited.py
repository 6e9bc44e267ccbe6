"""CSV and TSV files: a header, then rows, quoted as RFC 4180 says."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from align.formats.raw import MAX_LINE_BYTES, UNDECODED, RawProblem, RawRow, characters_of, utf8_hint

if TYPE_CHECKING:
    from _csv import Reader  # the csv module has no public name for it


def read_csv(stream: IO[bytes], delimiter: str = ",") -> Iterator[RawRow]:
    """Rows of a CSV file with a header, quoted as RFC 4180 says."""
    # A process-wide limit of the csv module; an unclosed quote would otherwise swallow the whole file.
    csv.field_size_limit(MAX_LINE_BYTES)
    with characters_of(stream) as characters:
        # Without `strict`, the csv module accepts misplaced quotes and may join cells.
        lines = _Lines(characters)
        yield from _read_csv_rows(csv.reader(lines, delimiter=delimiter, strict=True), lines)


class _RowTooLong(Exception):
    """A row has more characters than one may have."""


class _Lines:
    """Lines of a file for the csv module, as long as they and their row are not too long."""

    def __init__(self, characters: IO[str]) -> None:
        self._readline = characters.readline
        self.row_characters = 0
        """Of the row that is being read."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._readline(MAX_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self.row_characters += len(line)
        if self.row_characters > MAX_LINE_BYTES:
            raise _RowTooLong
        return line


def _read_csv_rows(reader: Reader, lines: _Lines) -> Iterator[RawRow]:
    header: list[str] | None = None
    while True:
        # Read before `next`: a quoted cell may span several lines, and a row is named by its first.
        line, lines.row_characters = reader.line_num + 1, 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _RowTooLong:
            # Where the next row begins depends on quotes that were not read.
            message = f"the row is longer than {MAX_LINE_BYTES:,} characters; is a quote not closed? The rest cannot be read"
            yield line, RawProblem("too_long", message, ends_file=True)
            return
        except csv.Error as error:
            message = f"not CSV: {error}; is a quote not closed, or not doubled inside a quoted cell?"
            # At the end of the file, the quote that is not closed has swallowed every row after it.
            yield line, RawProblem("not_csv", message, ends_file="end of data" in str(error))
            continue
        # An empty line.
        if not cells:
            continue
        if header is None:
            header = cells
            problem = _header_problem(cells)
            if problem:
                yield line, RawProblem(*problem, ends_file=True)
                return
        elif any(UNDECODED.search(cell) for cell in cells):
            yield line, RawProblem("bad_encoding", f"there are bytes that are not UTF-8; {_utf8_hint(cells)}")
        elif len(cells) != len(header):
            yield line, RawProblem("wrong_columns", f"has {len(cells)} cells, but the header has {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))


def _utf8_hint(cells: list[str]) -> str:
    return utf8_hint(" ".join(cells).encode("utf-8", "surrogateescape"))


def _header_problem(header: list[str]) -> tuple[str, str] | None:
    """Reason and message, where no row could be read with this header."""
    if any(UNDECODED.search(name) for name in header):
        return "bad_encoding", f"the header has bytes that are not UTF-8; {_utf8_hint(header)}"
    if len(header) == 1 and (sign := next((sign for sign in (";", "\t", "|") if sign in header[0]), None)):
        shown = "tabs: name the file .tsv" if sign == "\t" else f"{sign!r}: put commas between them"
        return "wrong_columns", f"the header is one column, {header[0]!r}; its cells are separated by {shown}"
    twice = sorted({name for name in header if header.count(name) > 1})
    return ("wrong_columns", f"the header names {', '.join(map(repr, twice))} more than once") if twice else None
