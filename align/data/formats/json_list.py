"""JSON files: one list of objects, parsed object by object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

from align.data.formats.lines import DECODER, excerpt, reason_of, require_object
from align.data.formats.raw import UNDECODED, UTF8_HINT, RawProblem, RawRow, characters_of

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


def read_json(stream: IO[bytes]) -> Iterator[RawRow]:
    """Objects of one JSON list."""
    with characters_of(stream) as characters:
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
            value, end = DECODER.raw_decode(text.buffer, text.position)
        except json.JSONDecodeError as error:
            if not text.ended:
                text.more()
                continue
            shown = excerpt(text.buffer, error.pos)
            line += text.buffer.count("\n", text.position, error.pos)
            return line, RawProblem("not_json", f"not JSON: {error.msg}: {shown}; the rest cannot be read", ends_file=True)
        except (ValueError, RecursionError) as error:
            return line, RawProblem("not_json", f"not usable JSON: {reason_of(error)}; the rest cannot be read", ends_file=True)
        if end == len(text.buffer) and not text.ended:  # a number may go on in the next chunk
            text.more()
            continue
        if UNDECODED.search(text.advance(end)):
            return line, RawProblem("bad_encoding", f"there are bytes that are not UTF-8; {UTF8_HINT}")
        return line, require_object(value)
