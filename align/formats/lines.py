"""Formats with one row a line: JSON Lines and plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from align.formats.raw import MAX_LINE_BYTES, RawProblem, RawRow, too_many_values, utf8_hint
from align.strict import unique_keys


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, str | RawProblem]]:
    """Decoded lines without their line break; empty ones are left out."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            # The rest of the line is skipped in pieces, so that memory never holds all of it.
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE_BYTES)
            yield number, RawProblem("too_long", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        # Only the line break is removed: other white space at the end belongs to the text.
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            shown = raw[error.start : error.start + 4].hex(" ")
            yield (
                number,
                RawProblem("bad_encoding", f"byte {error.start + 1} of the line ({shown}) is not UTF-8; {utf8_hint(raw)}"),
            )
            continue
        if text.strip():
            yield number, text


def read_text(stream: IO[bytes]) -> Iterator[RawRow]:
    """The lines of a text file, each a row with the field `text`."""
    for number, line in _lines(stream):
        yield number, {"text": line} if isinstance(line, str) else line


def read_json_lines(stream: IO[bytes]) -> Iterator[RawRow]:
    """The objects of a JSON Lines file. A line that holds none gives a problem, and reading goes on."""
    for number, line in _lines(stream):
        yield number, parse_object(line) if isinstance(line, str) else line


def parse_object(text: str) -> dict[str, Any] | RawProblem:
    """The JSON object that `text` holds, or what is wrong with it."""
    if problem := too_many_values(text):
        return RawProblem("too_long", problem)
    try:
        # The same as `decode` without its search for white space, which is faster. Any other line goes to `decode` below.
        value, end = _scan(text, 0)
        if end == len(text):
            return value if type(value) is dict else require_object(value)
    except (StopIteration, ValueError, RecursionError):
        pass
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        return RawProblem(
            "not_json", f"not JSON: {error.msg} at character {error.pos + 1}: {excerpt(text, error.pos)}{_cause(text)}"
        )
    except (ValueError, RecursionError) as error:
        return RawProblem("not_json", f"not usable JSON: {reason_of(error)}")
    return require_object(value)


def _cause(text: str) -> str:
    """What a line usually is that begins or ends like this, with what to do; empty for any other."""
    text = text.strip()
    if text.startswith("["):
        return "; a JSON array goes into a file that ends in .json"
    if text.startswith("{'"):
        return "; keys and texts need double quotes: write rows with a JSON library"
    if text.startswith("<"):
        return "; this is a web page or XML, so the download gave no data"
    return "; rows stand on lines of their own, without commas" if text.endswith("},") else ""


def reason_of(error: BaseException) -> str:
    """What to tell the user of an error of the JSON parser; Python's own text for deep nesting is about its stack."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def require_object(value: Any) -> dict[str, Any] | RawProblem:
    """The value if it is a JSON object, or a problem that quotes it."""
    if isinstance(value, dict):
        return value
    shown = json.dumps(value, ensure_ascii=False)
    return RawProblem("not_an_object", f"must be a JSON object {{…}}, but is {shown if len(shown) <= 60 else shown[:60] + '…'}")


def excerpt(text: str, position: int) -> str:
    """Twenty characters on either side of a position, quoted for a message."""
    start = max(0, position - 20)
    return repr(text[start : position + 20])


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)
_scan: Callable[[str, int], tuple[Any, int]] = DECODER.scan_once  # type: ignore[attr-defined]  # its stub leaves it out
