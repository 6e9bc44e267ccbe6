"""The results of reading a file: rows with their place, or the problem at that place."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import IO, Any

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Of a line, an element of a list or a row of a table. A longer one is reported, and never held in memory."""

MAX_VALUES = 4_000_000
"""Of a row in JSON, with commas inside texts counted as values. An empty list is three bytes there, and seventy in Python."""
LONG_CHARACTERS = MAX_LINE_BYTES // 8
"""Of JSON in which values are counted: what is shorter cannot have so many that they fill the memory."""

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
    if len(text) - start <= LONG_CHARACTERS or (count := text.count(",", start)) <= MAX_VALUES:
        return None
    return f"it has {count:,} commas, so about as many values; at most {MAX_VALUES:,} are read"


def characters_of(stream: IO[bytes]) -> IO[str]:
    """The text of a file with its line breaks unchanged; `UNDECODED` finds the bytes that are not UTF-8."""
    # utf-8-sig skips a byte order mark. newline="" keeps a CR LF inside a quoted cell, as the csv module requires.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
