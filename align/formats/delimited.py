"""CSV and TSV files: a header, then rows, quoted as RFC 4180 says."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from align.formats import raw
from align.formats.raw import MAX_LINE_BYTES, UNDECODED, RawProblem, RawRow, characters_of, repeated_names, utf8_hint

if TYPE_CHECKING:
    from _csv import Reader  # the csv module has no public name for it


_PIECE_CHARACTERS = 1 << 22


def read_csv(stream: IO[bytes], delimiter: str = ",") -> Iterator[RawRow]:
    """Rows of a CSV file with a header, quoted as RFC 4180 says."""
    # A process-wide limit of the csv module; an unclosed quote would otherwise swallow the whole file.
    csv.field_size_limit(MAX_LINE_BYTES)
    with characters_of(stream) as characters:
        # Without `strict`, the csv module accepts misplaced quotes and may join cells.
        lines = _Lines(characters, delimiter)
        yield from _read_csv_rows(csv.reader(lines, delimiter=delimiter, strict=True), lines)


class _RowTooLong(Exception):
    """A row has more bytes or values than one may have; the text says what."""


class _Lines:
    """Lines of a file for the csv module, as long as they and their row are not too long."""

    def __init__(self, characters: IO[str], delimiter: str) -> None:
        self._readline = characters.readline
        self._delimiter = delimiter
        self.begin_row()

    def begin_row(self) -> None:
        """What is read from now on belongs to another row."""
        self._row_bytes = self._row_delimiters = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        pieces: list[str] = []
        # In pieces: a character is up to four bytes, in the file and in memory.
        while piece := self._readline(_PIECE_CHARACTERS):
            self._row_bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogateescape"))
            if self._row_bytes > MAX_LINE_BYTES:
                raise _RowTooLong(f"the row is longer than {MAX_LINE_BYTES:,} bytes; is a quote not closed?")
            if self._row_bytes > raw.LONG_CHARACTERS:
                self._row_delimiters += piece.count(self._delimiter)
                if self._row_delimiters > raw.MAX_VALUES:
                    raise _RowTooLong(f"the row has more than {raw.MAX_VALUES:,} cells.")
            pieces.append(piece)
            if len(piece) < _PIECE_CHARACTERS or piece.endswith(("\n", "\r")):
                break
        if not pieces:
            raise StopIteration
        return pieces[0] if len(pieces) == 1 else "".join(pieces)


def _read_csv_rows(reader: Reader, lines: _Lines) -> Iterator[RawRow]:
    header: list[str] | None = None
    while True:
        # Read before `next`: a quoted cell may span several lines, and a row is named by its first.
        line = reader.line_num + 1
        lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _RowTooLong as error:
            # Where the next row begins depends on quotes that were not read.
            yield line, RawProblem("too_long", f"{error} The rest cannot be read", ends_file=True)
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
    twice = repeated_names(header)
    return ("wrong_columns", f"the header names {twice} more than once") if twice else None
