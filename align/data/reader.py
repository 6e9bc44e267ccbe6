"""Reads a user's file row by row: JSON Lines, JSON, CSV, TSV or plain text, each optionally gzipped; Parquet; Arrow.

An unreadable row is a value (`RawProblem`), so that one pass reports everything that is wrong. Nothing is converted, trimmed or
normalised, and memory holds one row at a time (one batch for columnar files).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from align.errors import DataError
from align.formats.columnar import read_arrow, read_parquet
from align.formats.delimited import read_csv
from align.formats.json_list import read_json
from align.formats.lines import read_json_lines, read_text
from align.formats.raw import LFS_HINT, LFS_START, UTF8_HINT, RawProblem, RawRow
from align.formats.unpacked import TooLarge, Unpacked
from align.runtime.plain_file import open_plain
from align.system_errors import system_problem

__all__ = ["FORMATS", "RawProblem", "RawRow", "file_format", "read_raw", "unknown_format"]

_TEXT_PARSERS: dict[str, Callable[[IO[bytes]], Iterator[RawRow]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".txt": read_text,
}
_COLUMNAR_PARSERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {".parquet": read_parquet, ".arrow": read_arrow}

_UNPACKED_BYTES = 1 << 17
"""Read at a time from a gzip stream."""

FORMATS = (*_TEXT_PARSERS, *_COLUMNAR_PARSERS)
"""File endings, one per format. The text formats may add `.gz`."""


def read_raw(path: Path) -> Iterator[RawRow]:
    """Rows of `path` in file order. The file's ending decides the format.

    Line numbers are physical lines of the (uncompressed) file, 1-based; a CSV row with quoted line breaks and a JSON object
    have the number of their first line; rows of columnar files are counted from 1. Empty lines are no rows. A UTF-8 byte order
    mark is skipped.

    Raises:
        DataError: if the file is absent, unreadable or of an unknown format.
    """
    ending = file_format(path)
    if ending in _COLUMNAR_PARSERS:
        yield from _COLUMNAR_PARSERS[ending](path)
    elif ending in _TEXT_PARSERS:
        yield from _read_text_format(path, _TEXT_PARSERS[ending])
    else:
        raise unknown_format(path)


def file_format(path: Path) -> str:
    """The ending that names the format, such as `.jsonl`, without the `.gz` of a text format."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    # Columnar files are read by seeking, which a gzip stream does not allow: `.parquet.gz` is no known format.
    if len(suffixes) > 1 and suffixes[-1] == ".gz" and suffixes[-2] not in _COLUMNAR_PARSERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def unknown_format(path: Path) -> DataError:
    """The error for a file whose ending names no format."""
    ending = file_format(path)
    hint = "Rename the file, or convert it to one of these."
    if ending in (".xlsx", ".xls", ".ods"):
        hint = "Save the sheet as CSV UTF-8."
    if ending == ".gz":
        hint = "Parquet and Arrow files are compressed inside: unpack it. Of other files, name the format before .gz."
    return DataError(
        f"{path}: the ending {ending or '(none)'} says nothing about the format; expected one of {', '.join(FORMATS)}; "
        "the text formats may have .gz behind them",
        hint=hint,
    )


def _read_text_format(path: Path, parse: Callable[[IO[bytes]], Iterator[RawRow]]) -> Iterator[RawRow]:
    line = 0
    try:
        with _open(path) as stream:
            # peek, not read: the parser needs the first bytes too.
            foreign = _foreign_encoding(stream.peek(len(LFS_START))[: len(LFS_START)])  # type: ignore[attr-defined]
            if foreign is not None:
                yield 1, RawProblem("bad_encoding", f"the file {foreign}", ends_file=True, of_file=True)
                return
            for line, row in parse(stream):
                yield line, row
    except TooLarge as error:
        yield line + 1, RawProblem("too_long", f"the gzip file is refused: {error}; if it is right, unpack it first", True, True)
    # Must precede OSError, the base of BadGzipFile. The rows up to the damage have been yielded already.
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield (
            line + 1,
            RawProblem("damaged_file", f"the gzip file is damaged or cut short from here on ({error})", True, True),
        )
    except OSError as error:
        missing = DataError(f"{path}: cannot be read ({error.strerror or error})", hint="Check the path.")
        raise system_problem(error, path) or missing from error


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, uncompressed."""
    if path.suffix.lower() == ".gz":
        open_plain(path).close()
        return io.BufferedReader(Unpacked(gzip.open(path, "rb"), path.stat().st_size), _UNPACKED_BYTES)
    return open_plain(path)


def _foreign_encoding(start: bytes) -> str | None:
    """What the file is by its first bytes, if it is not the text of rows, and what to do."""
    # Without a byte order mark, ASCII text in big-endian UTF-16 has a zero in every other byte.
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(start) >= 4 and start[0] == 0 == start[2] and start[1] and start[3]):
        return f"is UTF-16; {UTF8_HINT}"
    if start.startswith(b"\x1f\x8b"):
        return "is gzip-compressed, but its name does not end in .gz"
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive or an office document; unpack it, or save the sheet as CSV UTF-8"
    if start.startswith(b"PAR1"):
        return "is a Parquet file: name it .parquet"
    if start.startswith(LFS_START):
        return LFS_HINT
    return None
