"""Read a user's file row by row: JSON Lines, JSON, CSV, TSV or plain text, each optionally gzipped.

A row that cannot be read is a value like any other (`RawProblem`), so that one pass names everything that is wrong. Nothing is
converted, trimmed or normalised, and memory holds one row at a time.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from align.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader  # the csv module has no public name for it

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is reported and skipped, never held in memory."""

# A byte that is not UTF-8 becomes one of these when text is decoded with "surrogateescape"; JSON's \u escapes cannot, because
# this is looked for in the text before it is parsed.
_UNDECODED = re.compile("[\udc80-\udcff]")
_UTF8_HINT = "save the file as UTF-8"


@dataclass(frozen=True)
class RawProblem:
    """Why there is no row at this place."""

    reason: str
    """`drop_reason`: not_json, not_csv, not_an_object, bad_encoding, wrong_columns, too_long, damaged_file."""
    message: str
    """What is there and what was expected."""
    ends_file: bool = False
    """Whether nothing after it could be read, so that nobody knows how many rows are missing."""


RawRow = tuple[int, dict[str, Any] | RawProblem]
"""1-based line on which the row starts, and the row or what is wrong with it."""


def read_raw(path: Path) -> Iterator[RawRow]:
    """Rows of `path` in file order; the format is told by the file's ending.

    Line numbers are physical lines of the (uncompressed) file, 1-based; a CSV row with quoted line breaks and a JSON object
    have the number of their first line. Empty lines are no rows. A UTF-8 byte order mark is skipped.

    Raises:
        DataError: if the file is absent, unreadable or of an unknown format.
    """
    parse = _parser_for(path)
    line = 0
    try:
        with _open(path) as stream:
            encoding = _foreign_encoding(stream.peek(4)[:4])  # type: ignore[attr-defined]
            if encoding is not None:
                yield 1, RawProblem("bad_encoding", f"the file is {encoding}; {_UTF8_HINT}", ends_file=True)
                return
            for line, row in parse(stream):
                yield line, row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield (
            line + 1,
            RawProblem(
                "damaged_file", f"the gzip file is damaged or cut short from here on ({error}); get it again", ends_file=True
            ),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", hint="Check the path.") from error


def file_format(path: Path) -> str:
    """The ending that tells the format, such as `.jsonl`; `.gz` is not counted."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _parser_for(path: Path) -> Callable[[IO[bytes]], Iterator[RawRow]]:
    """The function that reads this file's format."""
    ending = file_format(path)
    if ending not in _PARSERS:
        raise DataError(
            f"{path}: the ending {ending or '(none)'} says nothing about the format; expected one of {', '.join(_PARSERS)}, "
            "each optionally followed by .gz",
            hint="Rename the file, or convert it to one of these.",
        )
    return _PARSERS[ending]


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, uncompressed."""
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))  # type: ignore[type-var, unused-ignore]
    return path.open("rb")


def _foreign_encoding(start: bytes) -> str | None:
    """The name of an encoding other than UTF-8 that the first bytes announce."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(start) >= 4 and start[0] == 0 == start[2] and start[1] and start[3]):
        return "UTF-16"
    if start.startswith(b"\x1f\x8b"):
        return "gzip-compressed, but its name does not end in .gz"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive or an office document"
    return None


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, str | RawProblem]]:
    """Decoded lines without their line break; empty ones are left out."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE_BYTES)
            yield number, RawProblem("too_long", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            shown = raw[error.start : error.start + 4].hex(" ")
            yield number, RawProblem("bad_encoding", f"byte {error.start + 1} of the line ({shown}) is not UTF-8; {_UTF8_HINT}")
            continue
        if text.strip():
            yield number, text


def _read_text(stream: IO[bytes]) -> Iterator[RawRow]:
    for number, line in _lines(stream):
        yield number, {"text": line} if isinstance(line, str) else line


def _read_json_lines(stream: IO[bytes]) -> Iterator[RawRow]:
    for number, line in _lines(stream):
        yield number, parse_object(line) if isinstance(line, str) else line


def parse_object(text: str) -> dict[str, Any] | RawProblem:
    """The JSON object that `text` holds, or what is wrong with it."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return RawProblem("not_json", f"not JSON: {error.msg} at character {error.pos + 1}: {_excerpt(text, error.pos)}")
    except (ValueError, RecursionError) as error:
        return RawProblem("not_json", f"not usable JSON: {_reason(error)}")
    return _require_object(value)


def _reason(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _require_object(value: Any) -> dict[str, Any] | RawProblem:
    if isinstance(value, dict):
        return value
    shown = json.dumps(value, ensure_ascii=False)
    return RawProblem("not_an_object", f"must be a JSON object {{…}}, but is {shown if len(shown) <= 60 else shown[:60] + '…'}")


def _excerpt(text: str, position: int) -> str:
    start = max(0, position - 20)
    return repr(text[start : position + 20])


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs; a key given twice would lose a value in silence, so it is an error."""
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return result


def _characters(stream: IO[bytes]) -> IO[str]:
    """The text of a file with its line breaks as they are; bytes that are not UTF-8 can be told afterwards."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
_CHUNK_CHARACTERS = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class _JsonText:
    """Text of a JSON file, read in chunks, with the line number of the current place."""

    def __init__(self, characters: IO[str]) -> None:
        self._reader = characters
        self.buffer = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def more(self) -> None:
        """Read on; each time at least as much again as is unparsed, so that a large object is not parsed from its start often."""
        rest = self.buffer[self.position :]
        chunk = self._reader.read(max(_CHUNK_CHARACTERS, len(rest)))
        self.ended = not chunk
        self.buffer, self.position = rest + chunk, 0

    def advance(self, end: int) -> str:
        """Move to `end` and return what was passed over."""
        passed = self.buffer[self.position : end]
        self.line += passed.count("\n")
        self.position = end
        return passed

    def next_character(self) -> str:
        """The next character that is no white space, without passing it; empty at the end of the file."""
        while True:
            match = _SPACE.match(self.buffer, self.position)
            assert match is not None  # the pattern matches the empty string
            self.advance(match.end())
            if self.position < len(self.buffer) or self.ended:
                return self.buffer[self.position : self.position + 1]
            self.more()


def _read_json(stream: IO[bytes]) -> Iterator[RawRow]:
    """Objects of one JSON list."""
    with _characters(stream) as characters:
        yield from _read_json_list(_JsonText(characters))


def _read_json_list(text: _JsonText) -> Iterator[RawRow]:
    first = text.next_character()
    if not first:
        return
    if first != "[":
        told = "it looks like JSON Lines: name it .jsonl" if first == "{" else "expected [ at the start"
        yield text.line, RawProblem("not_json", f"a .json file must hold one list of objects; {told}", ends_file=True)
        return
    text.advance(text.position + 1)
    if text.next_character() == "]":
        return
    while True:
        line, row = _read_json_item(text)
        yield line, row
        if isinstance(row, RawProblem) and row.ends_file:
            return
        separator = text.next_character()
        text.advance(text.position + 1)
        if separator == "]":
            break
        if separator != ",":
            found = repr(separator) if separator else "the end of the file"
            yield (
                text.line,
                RawProblem(
                    "not_json", f"expected , or ] after an object, found {found}; the rest cannot be read", ends_file=True
                ),
            )
            return
    if text.next_character():
        yield text.line, RawProblem("not_json", "there is text after the list's closing ]", ends_file=True)


def _read_json_item(text: _JsonText) -> RawRow:
    """The next item of the list. Malformed JSON ends the file: there is no telling where the next item starts."""
    text.next_character()
    line = text.line
    while True:
        try:
            value, end = _DECODER.raw_decode(text.buffer, text.position)
        except json.JSONDecodeError as error:
            if not text.ended:
                text.more()
                continue
            shown = _excerpt(text.buffer, error.pos)
            line += text.buffer.count("\n", text.position, error.pos)
            return line, RawProblem("not_json", f"not JSON: {error.msg}: {shown}; the rest cannot be read", ends_file=True)
        except (ValueError, RecursionError) as error:
            return line, RawProblem("not_json", f"not usable JSON: {_reason(error)}; the rest cannot be read", ends_file=True)
        if end == len(text.buffer) and not text.ended:  # a number may go on in the next chunk
            text.more()
            continue
        if _UNDECODED.search(text.advance(end)):
            return line, RawProblem("bad_encoding", f"there are bytes that are not UTF-8; {_UTF8_HINT}")
        return line, _require_object(value)


def _read_csv(stream: IO[bytes], delimiter: str = ",") -> Iterator[RawRow]:
    """Rows of a CSV file with a header, quoted as RFC 4180 says."""
    # A process-wide limit of the csv module; an unclosed quote would otherwise swallow the whole file.
    csv.field_size_limit(MAX_LINE_BYTES)
    with _characters(stream) as characters:
        yield from _read_csv_rows(csv.reader(characters, delimiter=delimiter, strict=True))


def _read_csv_rows(reader: Reader) -> Iterator[RawRow]:
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            told = f"not CSV: {error}; is a quote not closed, or not doubled inside a quoted cell?"
            # At the end of the file, the quote that is not closed has swallowed every row after it.
            yield line, RawProblem("not_csv", told, ends_file="end of data" in str(error))
            continue
        if not cells:
            continue
        if header is None:
            header = cells
            problem = _header_problem(cells)
            if problem:
                yield line, RawProblem(*problem, ends_file=True)
                return
        elif any(_UNDECODED.search(cell) for cell in cells):
            yield line, RawProblem("bad_encoding", f"there are bytes that are not UTF-8; {_UTF8_HINT}")
        elif len(cells) != len(header):
            yield line, RawProblem("wrong_columns", f"has {len(cells)} cells, but the header has {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))


def _header_problem(header: list[str]) -> tuple[str, str] | None:
    """Reason and message, where no row could be read with this header."""
    if any(_UNDECODED.search(name) for name in header):
        return "bad_encoding", f"the header has bytes that are not UTF-8; {_UTF8_HINT}"
    twice = sorted({name for name in header if header.count(name) > 1})
    return ("wrong_columns", f"the header names {', '.join(map(repr, twice))} more than once") if twice else None


_PARSERS: dict[str, Callable[[IO[bytes]], Iterator[RawRow]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".txt": _read_text,
}
