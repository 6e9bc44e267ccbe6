"""The results of reading a file: rows with their place, or the problem at that place."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Of a line, an element of a list or a row of a table. A longer one is reported, and never held in memory."""

MAX_VALUES = 4_000_000
"""Of a row in JSON or CSV, with the commas inside texts; a key of JSON counts as two more. An empty list is three bytes there,
and seventy in Python."""
LONG_CHARACTERS = MAX_LINE_BYTES // 8
"""Of a row in which values are counted: what is shorter cannot have so many that they fill the memory."""
SHOWN_NAMES = 5

# A byte that is not UTF-8 becomes one of these when text is decoded with "surrogateescape"; JSON's \u escapes cannot, because
# this is looked for in the text before it is parsed.
UNDECODED = re.compile("[\udc80-\udcff]")
UTF8_HINT = "save the file as UTF-8"
LFS_START = b"version https://git-lfs"
LFS_HINT = "is a pointer of Git LFS and not the file itself; git lfs pull fetches that"
_HANGUL = re.compile("[\uac00-\ud7a3]")


def utf8_hint(content: bytes) -> str:
    """What to do about bytes that are not UTF-8; Korean text is often CP949, by Excel and older Windows programs."""
    try:
        is_korean = _HANGUL.search(content.decode("cp949")) is not None
    except UnicodeDecodeError:
        is_korean = False
    return f"{UTF8_HINT} (it looks like CP949: iconv -f cp949 -t utf-8)" if is_korean else UTF8_HINT


@dataclass(frozen=True)
class RawProblem:
    """Why there is no row at this place."""

    reason: str
    """`drop_reason`: not_json, not_csv, not_an_object, bad_encoding, wrong_columns, too_long, damaged_file."""
    message: str
    """What was found and what was expected."""
    ends_file: bool = False
    """Whether nothing after it could be read: the number of missing rows is unknown."""
    of_file: bool = False
    """Whether it is no row's, but the file's or what stands between two rows."""


RawRow = tuple[int, dict[str, Any] | RawProblem]
"""1-based line on which the row starts (of a columnar file, the number of the row), and the row or what is wrong with it."""


def too_many_values(text: str, start: int = 0) -> str | None:
    """Why a JSON value in `text` is not parsed; None if it may be."""
    if len(text) - start <= LONG_CHARACTERS:
        return None
    commas, colons = text.count(",", start), text.count(":", start)
    # A key takes some two hundred bytes with its place in the object.
    if commas + 2 * colons <= MAX_VALUES:
        return None
    return f"it has {commas:,} commas and {colons:,} colons, so about as many values and keys, which is more than are read"


def is_too_long(text: str, start: int = 0, end: int | None = None) -> bool:
    """Whether a part of a text has more than `MAX_LINE_BYTES` in UTF-8."""
    length = (len(text) if end is None else end) - start
    if length > MAX_LINE_BYTES or 4 * length <= MAX_LINE_BYTES or text.isascii():
        return length > MAX_LINE_BYTES
    return len(text[start:end].encode("utf-8", "surrogateescape")) > MAX_LINE_BYTES


def repeated_names(names: Iterable[str]) -> str:
    """The first names that there are several of, as a message shows them; empty if there are none."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return ", ".join([*map(repr, twice[:SHOWN_NAMES]), *(["…"] if len(twice) > SHOWN_NAMES else [])])


def characters_of(stream: IO[bytes]) -> IO[str]:
    """The text of a file with its line breaks unchanged; `UNDECODED` finds the bytes that are not UTF-8."""
    # utf-8-sig skips a byte order mark. newline="" keeps a CR LF inside a quoted cell, as the csv module requires.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
