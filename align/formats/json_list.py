"""JSON files: one list of objects, parsed object by object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

from align.formats.lines import DECODER, excerpt, reason_of, require_object
from align.formats.raw import (
    MAX_LINE_BYTES,
    UNDECODED,
    UTF8_HINT,
    RawProblem,
    RawRow,
    characters_of,
    is_too_long,
    too_many_values,
)

_CHUNK_CHARACTERS = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class _JsonText:
    """Text of a JSON file, read in chunks, with the line number of the current place."""

    def __init__(self, characters: IO[str]) -> None:
        self._reader = characters
        self._put_back, self._put_back_position = "", 0
        """What is read again before the file, and how far it has been."""
        self.buffer = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def more(self) -> None:
        """Read on. The buffer at least doubles, so that a large object is not parsed from its start many times."""
        rest = self.buffer[self.position :]
        size = max(_CHUNK_CHARACTERS, min(len(rest), MAX_LINE_BYTES - len(rest)))
        begin = self._put_back_position
        chunk = self._put_back[begin : begin + size]
        if chunk:
            self._put_back_position += len(chunk)
        else:
            self._put_back, self._put_back_position = "", 0
            chunk = self._reader.read(size)
        self.ended = not chunk
        self.buffer, self.position = rest + chunk, 0

    def advance(self, end: int) -> None:
        """Move to `end`."""
        self.line += self.buffer.count("\n", self.position, end)
        self.position = end
        # A large element leaves much behind it. Its values are no single element's, and would be counted at each that follows.
        if len(self.buffer) - end > 2 * _CHUNK_CHARACTERS:
            kept = end + _CHUNK_CHARACTERS
            self._put_back = self.buffer[kept:] + self._put_back[self._put_back_position :]
            self._put_back_position = 0
            self.buffer, self.ended = self.buffer[:kept], False

    def next_character(self) -> str:
        """The next character that is no white space, without passing it; empty at the end of the file."""
        while True:
            self.advance(_SPACE.match(self.buffer, self.position).end())  # type: ignore[union-attr]  # it matches the empty string
            if self.position < len(self.buffer) or self.ended:
                return self.buffer[self.position : self.position + 1]
            self.more()


def read_json(stream: IO[bytes]) -> Iterator[RawRow]:
    """Objects of one JSON list. Malformed JSON ends the file: there is no way to know where the next item starts."""
    with characters_of(stream) as characters:
        text = _JsonText(characters)
        first = text.next_character()
        if not first:
            return
        if first != "[":
            hint = "it looks like JSON Lines: name it .jsonl" if first == "{" else "expected [ at the start"
            yield text.line, _broken_list(f"a .json file must hold one list of objects; {hint}")
            return
        text.position += 1
        if text.next_character() == "]":
            return
        separator, number = ",", 0
        while separator == ",":
            text.next_character()
            number += 1
            line, row = _read_item(text)
            yield line, row
            if isinstance(row, RawProblem) and row.ends_file:
                return
            separator = text.next_character()
            text.position += 1
        if separator != "]":
            found = repr(separator) if separator else "the end of the file"
            yield text.line, _broken_list(f"expected , or ] after element {number}, found {found}; the rest cannot be read")
            return
        if text.next_character():
            yield text.line, _broken_list("there is text after the list's closing ]")


def _read_item(text: _JsonText) -> RawRow:
    """The item that begins at the current place."""
    line = text.line
    while True:
        if problem := too_many_values(text.buffer, text.position):
            return line, RawProblem("too_long", f"{problem}; the rest cannot be read", ends_file=True)
        try:
            value, end = DECODER.raw_decode(text.buffer, text.position)
        except json.JSONDecodeError as error:
            # Perhaps the object is not wrong but cut by the end of the chunk.
            if not text.ended:
                if is_too_long(text.buffer, text.position):
                    return line, _too_long()
                text.more()
                continue
            line += text.buffer.count("\n", text.position, error.pos)
            return line, _end_of_file(f"not JSON: {error.msg}: {excerpt(text.buffer, error.pos)}; the rest cannot be read")
        # Two equal keys, a number too long for Python, or too deep nesting; more text would not help.
        except (ValueError, RecursionError) as error:
            return line, _end_of_file(f"not usable JSON: {reason_of(error)}; the rest cannot be read")
        if end == len(text.buffer) and not text.ended:  # a number may go on in the next chunk
            text.more()
            continue
        if is_too_long(text.buffer, text.position, end):
            return line, _too_long()
        undecoded = not text.buffer.isascii() and UNDECODED.search(text.buffer, text.position, end)
        text.advance(end)
        if undecoded:
            return line, RawProblem("bad_encoding", f"there are bytes that are not UTF-8; {UTF8_HINT}")
        return line, require_object(value)


def _broken_list(message: str) -> RawProblem:
    return RawProblem("not_json", message, ends_file=True, of_file=True)


def _too_long() -> RawProblem:
    message = f"the element is longer than {MAX_LINE_BYTES:,} bytes; the rest cannot be read"
    return RawProblem("too_long", message, ends_file=True)


def _end_of_file(message: str) -> RawProblem:
    return RawProblem("not_json", message, ends_file=True)
