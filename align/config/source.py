"""YAML as plain Python, with the line and column of every key and value.

Recipes are YAML 1.2 (core schema): `1e-5` is a number, `yes` and `2024-01-01` are text. Anchors, aliases, tags and several
documents in a file are refused: an untrusted recipe must not expand in memory, and must mean what it shows.
"""

from __future__ import annotations

import codecs
import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)
from ruamel.yaml.reader import ReaderError

from align.errors import RecipeError
from align.runtime.plain_file import open_plain, other_kind
from align.system_errors import system_problem

if TYPE_CHECKING:
    from align.config.reference import FieldPath

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_DIGITS = 300

_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_NO_SPACE = re.compile(r"\s*([\w.-]+:)([^\s].*)")
_LOOKALIKES = dict(zip("：，｛｝［］“”‘’＂＃", ':,{}[]""\'\'"#', strict=True))
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_CONSTANTS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True, order=True)
class Position:
    """A position in a file. `rank` orders the files of one recipe; with line 0, the label alone is shown."""

    rank: int
    line: int
    column: int
    label: str

    def __str__(self) -> str:
        return f"{self.label}:{self.line}:{self.column}" if self.line else self.label


@dataclass
class Document:
    """A plain value and where each part of it was written.

    `keys` holds the position of a mapping's key, `values` that of its value or of a list's entry; the top is at `()`.
    """

    value: Any
    keys: dict[FieldPath, Position] = field(default_factory=dict)
    values: dict[FieldPath, Position] = field(default_factory=dict)

    def key_position(self, path: FieldPath) -> Position:
        """Position of the key; without one, that of the value or of the nearest value around it."""
        return self._nearest(path, lambda part: self.keys.get(part) or self.values.get(part))

    def value_position(self, path: FieldPath) -> Position:
        """Position of the value; without one, that of the nearest value around it."""
        if path in self.values:
            return self.values[path]
        return self.key_position(path[:-1])

    def _nearest(self, path: FieldPath, find: Callable[[FieldPath], Position | None]) -> Position:
        for length in range(len(path), -1, -1):
            if found := find(path[:length]):
                return found
        return Position(0, 1, 1, "recipe")

    def get(self, path: FieldPath) -> Any:
        """The value at `path`, which must exist."""
        value = self.value
        for part in path:
            value = value[part]
        return value

    def graft(self, path: FieldPath, other: Document) -> None:
        """Put the content of `other` in place of the value at `path`, with its positions."""
        self.forget_below(path)
        self.get(path[:-1])[path[-1]] = other.value
        self.keys.update({(*path, *inner): position for inner, position in other.keys.items()})
        # The value's own position becomes the top of the file that it came from.
        self.values.update({(*path, *inner): position for inner, position in other.values.items()})

    def put(self, path: FieldPath, value: Any, position: Position) -> None:
        """Put a value at `path`, whose parent must exist; everything in it is at `position`."""
        self.forget_below(path)
        self.get(path[:-1])[path[-1]] = value
        self.keys[path] = self.values[path] = position

    def move(self, path: FieldPath, target: FieldPath) -> None:
        """Take the value at `path` to `target`, whose parent must exist, with its positions."""
        self.get(target[:-1])[target[-1]] = self.get(path[:-1]).pop(path[-1])
        for positions in (self.keys, self.values):
            for known in [known for known in positions if known[: len(path)] == path]:
                positions[(*target, *known[len(path) :])] = positions.pop(known)

    def forget_below(self, path: FieldPath) -> None:
        """Drop the positions of everything inside `path`."""
        for positions in (self.keys, self.values):
            for known in [known for known in positions if known[: len(path)] == path and len(known) > len(path)]:
                del positions[known]


def read_document(path: Path, *, rank: int = 0, label: str | None = None) -> Document:
    """The content of a YAML file.

    Raises:
        RecipeError: the file cannot be read, is too large, or is not the plain YAML that recipes are made of.
    """
    label = label or str(path)
    try:
        with open_plain(path) as stream:
            # One byte more than allowed shows that the file is too large, without reading all of it.
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{label}: there is no such file", hint="Check the path; relative paths start where you are.") from None
    except IsADirectoryError:
        raise RecipeError(f"{label}: this is a folder, not a YAML file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:  # the former: a null character
            raise RecipeError(f"{label}: no file can have this name", hint="Check the path.") from None
        hint = "Save what it gives as a file, and name that." if other_kind(path) else None
        unreadable = RecipeError(f"{label}: cannot be read ({error.strerror})", hint=hint)
        raise system_problem(error, path) or unreadable from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{label}: larger than {MAX_BYTES >> 20} MiB, so it is not a recipe", hint="Is this the right file?")
    try:
        # -sig, because some editors write a byte order mark, which is not YAML.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise RecipeError(
            f"{label}:{line}:{column}: {_encoding_problem(content, error.start)}", hint="Save the file as UTF-8."
        ) from None
    return parse_text(text, label=label, rank=rank)


def _encoding_problem(content: bytes, start: int) -> str:
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "the file is UTF-16, not UTF-8"
    problem = f"byte 0x{content[start]:02x} is not UTF-8"
    try:
        content.decode("cp949")
    except UnicodeDecodeError:
        return problem
    return f"{problem}; the file may be CP949 (EUC-KR)"


def parse_text(text: str, *, label: str, rank: int = 0, show_lines: bool = True) -> Document:
    """A YAML text as a document. Without `show_lines` every position is the label alone, as for text on the command line."""
    reader = _Reader(label, rank, show_lines)
    try:
        return reader.read(text)
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise RecipeError(
            f"{reader.position(line, column)}: the character U+{_code(error.character):04X} is not allowed in YAML",
            hint="Remove it; an editor that shows invisible characters helps.",
        ) from None
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, reader) from None
    except YAMLError as error:
        raise RecipeError(f"{label}: not YAML: {str(error).splitlines()[0]}") from None


def _code(character: int | str) -> int:
    return character if isinstance(character, int) else ord(character)


def resolve_scalar(text: str) -> Any:
    """The value of an unquoted scalar by the core schema of YAML 1.2; a number of more than MAX_DIGITS stays text."""
    # float() makes a number of more than 309 digits infinite, and int() refuses one of more than 4,300.
    if len(text) > MAX_DIGITS:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Reader:
    """Builds a document from the parser's events."""

    def __init__(self, label: str, rank: int, show_lines: bool) -> None:
        self.label = label
        self.rank = rank
        self.show_lines = show_lines
        self.document = Document(None)

    def position(self, line: int, column: int) -> Position:
        """`line` and `column` are 1-based."""
        return Position(self.rank, line, column, self.label) if self.show_lines else Position(self.rank, 0, 0, self.label)

    def of(self, event: Event) -> Position:
        return self.position(event.start_mark.line + 1, event.start_mark.column + 1)

    def read(self, text: str) -> Document:
        # Events carry positions, and anchors and tags can be refused before anything acts on them.
        events: Iterator[Event] = YAML(typ="safe", pure=True).parse(text)
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise RecipeError(f"{self.of(event)}: a second document starts here ('---'); a file holds one")
            elif not isinstance(event, (StreamStartEvent, StreamEndEvent, DocumentEndEvent)):
                self.document.value = self.node(event, events, ())
        # An empty file has no value, but messages about it need a place.
        self.document.values.setdefault((), self.position(1, 1))
        return self.document

    def node(self, event: Event, events: Iterator[Event], path: FieldPath) -> Any:
        position = self.of(event)
        self.refuse_indirection(event, position)
        # The reader is recursive; without a bound, Python's own limit would end it.
        if len(path) > MAX_DEPTH:
            raise RecipeError(f"{position}: nested deeper than {MAX_DEPTH} levels")
        # A key without a value: the parser has the place of what follows.
        is_absent = isinstance(event, ScalarEvent) and not event.value and not event.style
        self.document.values[path] = self.document.keys.get(path, position) if is_absent else position
        if isinstance(event, ScalarEvent):
            return self.scalar(event)
        if isinstance(event, MappingStartEvent):
            return self.mapping(events, path)
        entries: list[Any] = []
        for inner in events:
            if isinstance(inner, SequenceEndEvent):
                break
            entries.append(self.node(inner, events, (*path, len(entries))))
        return entries

    def mapping(self, events: Iterator[Event], path: FieldPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            position = self.of(event)
            self.refuse_indirection(event, position)
            key = self.scalar(event) if isinstance(event, ScalarEvent) else None
            if not isinstance(key, str):
                shown = f"'{event.value}'" if isinstance(event, ScalarEvent) else "a list or mapping"
                hint = "Put quotes around the key."
                # 0,001 in braces: the comma ends the value.
                if isinstance(event, ScalarEvent) and event.value.isdigit() and mapping and type([*mapping.values()][-1]) is int:
                    before, number = [*mapping.items()][-1]
                    hint = f"A number has a point, not a comma: {before}: {number}.{event.value} (a count: {number}{event.value})"
                raise RecipeError(f"{position}: a key must be text, got {shown}", hint=hint)
            inner = (*path, key)
            if key in mapping:
                first = self.document.keys[inner]
                hint = "Remove one of them."
                raise RecipeError(f"{position}: the key '{key}' is here twice; the first is at {first}", hint=hint)
            self.document.keys[inner] = position
            mapping[key] = self.node(next(events), events, inner)
        return mapping

    def scalar(self, event: ScalarEvent) -> Any:
        if not event.style:
            return resolve_scalar(event.value)
        # Quoted and block text is text, whatever it looks like. JSON writes characters beyond U+FFFF as two escapes.
        try:
            return event.value if event.value.isascii() else event.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            problem = "this text has half a character: an escape from \\ud800 to \\udfff without its other half"
            raise RecipeError(f"{self.of(event)}: {problem}") from None

    def refuse_indirection(self, event: Event, position: Position) -> None:
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            sign = "*" if isinstance(event, AliasEvent) else "&"
            raise RecipeError(
                f"{position}: anchors and aliases ({sign}{event.anchor}) are not used in recipes",
                hint=f"Write the value out; put quotes around a text that starts with {sign}.",
            )
        if isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent)) and event.tag is not None:
            raise RecipeError(
                f"{position}: tags ({event.tag}) are not used in recipes", hint="Put quotes around a text that starts with '!'."
            )


def _syntax_error(error: MarkedYAMLError, text: str, reader: _Reader) -> RecipeError:
    """The parser's error in plain words, at the position where it stopped."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    # The parser also counts rarer line breaks; beyond the last line there is nothing to show.
    lines = [*text.split("\n"), *[""] * line]
    shown = lines[line - 1]
    position = reader.position(line, column)
    # The parser only says that a character cannot start a token; a tab is a usual cause and cannot be seen.
    if "\t" in shown[: len(shown) - len(shown.lstrip())] or shown[column - 1 : column] == "\t":
        return RecipeError(f"{position}: a tab; YAML is indented with spaces", hint="Replace the tab by spaces.")
    problem = (error.problem or "this is not YAML").strip()
    context, start = error.context or "", error.context_mark
    if start is not None and context.startswith("while scanning a simple key"):
        # The parser goes on to the next line before it misses the colon.
        line, shown = start.line + 1, lines[start.line]
        where = reader.position(line, start.column + 1)
        if no_space := _NO_SPACE.match(shown):
            return RecipeError(f"{where}: a space is missing behind '{no_space[1]}'", hint=f"Write {no_space[1]} {no_space[2]}")
        return RecipeError(
            f"{where}: expected 'key: value'", hint=_full_width(shown) or "Write a colon and a space behind the key."
        )
    at_end = "stream end" in problem
    if start is not None and context.startswith("while parsing a flow") and (at_end or _leaves(lines, start.line, line - 1)):
        sign = "[" if "sequence" in context else "{"
        where = reader.position(start.line + 1, start.column + 1)
        hint = f"Write {'}' if sign == '{' else ']'} where it ends."
        return RecipeError(f"{where}: this {sign} is not closed", hint=_full_width(lines[start.line]) or hint)
    started = ""
    if error.context and error.context_mark and (error.context_mark.line, error.context_mark.column) != (line - 1, column - 1):
        started = f" ({error.context.strip()} that started at line {error.context_mark.line + 1})"
    return RecipeError(f"{position}: {problem}{started}", hint=_full_width(shown) or _advice(f"{context} {problem}", shown))


def _leaves(lines: Sequence[str], start: int, end: int) -> bool:
    """Whether line `end` is outside of what began in line `start`, by its indentation."""
    inside, outside = (len(lines[number]) - len(lines[number].lstrip()) for number in (start, end))
    return end > start and outside <= inside


def _full_width(line: str) -> str:
    """What to do about punctuation of East Asian keyboards and of word processors, which YAML takes for text."""
    found = {mark: plain for mark, plain in _LOOKALIKES.items() if mark in line.partition(" #")[0]}
    return f"Write {' '.join(found.values())} in place of {' '.join(found)}" if found else ""


def _advice(problem: str, line: str) -> str:
    if "${" in line or "{{" in line:
        return "Variables and templates are not expanded: write the value itself."
    if "mapping values are not allowed" in problem:
        return "Put quotes around a text that holds ': ', or check the indentation of this line and the one above."
    if "cannot start any token" in problem:
        return "Put quotes around a text that starts with %, @ or `."
    if "expected ',' or" in problem:
        return "A bracket or comma is missing; put quotes around texts that hold brackets or commas."
    if "quoted scalar" in problem:
        return "A closing quote is missing."
    return "Check indentation, brackets and quotes here and in the line above."
