"""One pass over rows: finds the problems and oddities of each, and makes the hashes for comparing rows.

This is the inner loop of reading data: a usable row costs a few microseconds, and no object is kept for it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from align.config.inputs import DataInput
from align.config.row_checks import Action, action_of
from align.data.quality.overlap import EvaluationIndex
from align.data.source import SourceFile
from align.data.validation.duplicates import Table, hash_text, table_of
from align.data.validation.label import MAX_LABEL_COLUMNS, LabelColumn, other_columns
from align.data.validation.summary import Problem, Tally, pointer_to
from align.formats.raw import RawProblem, RawRow
from align.records import Message, ToolCall, is_list
from align.rows import DataKind
from align.rows.fields import Fields
from align.rows.kind import OTHER_COLUMNS, TOOL_CALLS
from align.rows.problem import FieldProblem, shown
from align.rows.row import Reading, RowReader
from align.rows.text import explain, oddities

CONTENT_ID_DIGITS = 16
SCORE_FIELDS = ("chosen_score", "rejected_score")
ALL_TEXT_FORMATS = (".csv", ".tsv", ".txt")
ID_SHOWN_BYTES = 48

ID_TYPE = np.dtype([("key", "u8"), ("seq", "u8"), ("line", "u4"), ("origin", "u1"), ("id", f"S{ID_SHOWN_BYTES}")])
"""`origin`: one of the three below; `id`: the start of a given id, for messages."""
GIVEN, GIVEN_BAD, MADE = 0, 1, 2
"""The id was given in a usable row, given in an unusable row, or made from the row's content."""
CONTENT_TYPE = np.dtype([("key", "u8"), ("first", "u8"), ("second", "u8"), ("seq", "u8"), ("line", "u4")])
"""Hashes of the prompt (or text) and of at most two other fields: see `DataKind.contents`."""
_EMPTY = FieldProblem("", "missing_field", "holds nothing that makes a record")


@dataclass(frozen=True)
class RowRules:
    """How rows are read, and the action for each problem."""

    kind: DataKind[Any]
    max_characters: int = 100_000
    """A longer text is a problem, in Unicode code points."""
    on_invalid: Action = "error"
    """Action for an unusable row, unless `checks` has another."""
    checks: Mapping[str, Action] = field(default_factory=dict)
    """Action by check, where it is not the default."""
    evaluation: EvaluationIndex | None = None
    """Prompts that no kept row may overlap; looked for only in rows that are wanted."""

    def action(self, name: str) -> Action:
        """What is done with a row in which `name` was found."""
        return action_of(name, self.checks, self.on_invalid)


def rules_of(spec: DataInput, evaluation: EvaluationIndex | None = None) -> RowRules:
    """The rules for an input of a recipe."""
    return RowRules(spec.row_kind, spec.max_characters, spec.on_invalid, spec.checks, evaluation)


@dataclass(frozen=True)
class Wanted:
    """What a scan collects from usable rows besides counts and hashes."""

    rows: bool = False
    """The rows as JSON, with ids."""
    keys: bool = False
    """The text of each row's prompt, for the search for near duplicates."""
    file_names: bool = False
    """Whether records carry the file's name, because there are several files."""


@dataclass
class BlockResult:
    """The result of scanning a block. `seq` and row numbers count from the block's first row."""

    units: int = 0
    """Records and unusable rows."""
    bad: int = 0
    """Unusable rows."""
    problems: list[Problem] = field(default_factory=list)
    findings: dict[str, Tally] = field(default_factory=dict)
    unused: dict[str, None] = field(default_factory=dict)
    """Columns that no field took, in the order in which they came."""
    reading: Reading = field(default_factory=Reading)
    chosen_longer: int = 0
    ids: Table = field(default_factory=lambda: np.empty(0, ID_TYPE))
    contents: Table = field(default_factory=lambda: np.empty(0, CONTENT_TYPE))
    labels: dict[str, Table | None] = field(default_factory=dict)
    """By unused column; None for one that has too many values to be a label."""
    rows: list[tuple[int, str, str, bytes]] = field(default_factory=list)
    """seq, id, overlap with an evaluation prompt in words, and the record's JSON after the id; empty unless wanted."""
    keys: list[tuple[int, int, str]] = field(default_factory=list)
    """seq, line and prompt; empty unless wanted."""


class RecordChecks(Protocol):
    """Checks that need a model's tokenizer."""

    def problems_of(self, kind: DataKind[Any], records: Sequence[Any]) -> list[list[FieldProblem]]:
        """The problems of each record."""


def scan(
    rows: Iterable[RawRow], rules: RowRules, file: SourceFile, wanted: Wanted, checks: RecordChecks | None, rows_before: int = 0
) -> BlockResult:
    """Look at every row once.

    Args:
        rows_before: rows of the file before the first.
        checks: those that need a model; None for none.
    """
    scanner = _Scanner(rules, file, wanted, checks, rows_before)
    for line, row in rows:
        scanner.add(line, row)
    return scanner.finish()


class _Scanner:
    """The state of one block."""

    def __init__(self, rules: RowRules, file: SourceFile, wanted: Wanted, checks: RecordChecks | None, rows_before: int) -> None:
        self._rules = rules
        self._file = file
        self._wanted = wanted
        self._checks = checks
        self._in_list = is_list(file.shown)
        self._rows = rows_before
        # In a format that knows only text, a number written as text is no problem.
        self._all_text = file.format in ALL_TEXT_FORMATS
        self._reader = RowReader(rules.kind, file.columns, rules.max_characters)
        # Two parts of a mixture may use the same ids; the name of the part keeps them apart.
        self._salt = f"{file.part}/" if file.part else ""
        self._result = BlockResult()
        self._ids: list[tuple[int, int, int, int, bytes]] = []
        # A flat array of numbers: a tuple per row would take several times the memory.
        self._contents = array("Q")
        self._labels: dict[str, LabelColumn] = {}
        # Rows wait for the end of the block, because a tokenizer is called once for all of them.
        self._waiting: list[tuple[int, int, str | None, dict[str, Any], tuple[str, ...], Fields, int]] = []

    def add(self, line: int, row: dict[str, Any] | RawProblem) -> None:
        """Look at one row."""
        seq = self._result.units
        self._result.units = seq + 1
        self._rows += 1
        # Of a list, the element's number names the row: all elements may be on one line.
        line, start = (self._rows, line) if self._in_list else (line, 0)
        if isinstance(row, RawProblem):
            self._refuse(seq, line, None, [FieldProblem("", row.reason, row.message)], start, cause=row)
            return
        own_id, parts, problems, unused = self._reader.read(row)
        if problems or not parts:
            self._refuse(seq, line, own_id, problems or [_EMPTY], start, row)
            return
        for number, (suffix, fields) in enumerate(parts):
            # Each further part, such as a pair of a ranking, counts as a row of its own.
            if number:
                seq = self._result.units
                self._result.units = seq + 1
            # None stays None: the id is then made from the content of each part.
            part_id = own_id and own_id + suffix
            if isinstance(fields, FieldProblem):
                self._refuse(seq, line, part_id, [fields], start, row)
            elif self._checks is None:
                self._take(seq, line, part_id, row, unused, fields, start, [])
            else:
                self._waiting.append((seq, line, part_id, row, unused, fields, start))

    def finish(self) -> BlockResult:
        """The result of the block."""
        result = self._result
        if self._checks is not None and self._waiting:
            records = [_record(self._rules.kind, line, fields) for _, line, _, _, _, fields, _ in self._waiting]
            for unit, problems in zip(self._waiting, self._checks.problems_of(self._rules.kind, records), strict=True):
                self._take(*unit, problems)
            # Problems of rows that waited were found last; sorting restores the order of the file.
            result.problems.sort(key=lambda problem: problem.row_number)
        reader = self._reader
        result.unused.update(dict.fromkeys(sorted(reader.extra_message_keys)))
        result.reading = reader.reading()
        result.ids = np.array(self._ids, dtype=ID_TYPE)
        result.contents = table_of(self._contents, CONTENT_TYPE)
        result.labels = {name: label.table() for name, label in self._labels.items()}
        return result

    def _take(
        self,
        seq: int,
        line: int,
        own_id: str | None,
        row: dict[str, Any],
        unused: tuple[str, ...],
        fields: Fields,
        start: int,
        problems: list[FieldProblem],
    ) -> None:
        """Check the texts of a row, and keep its hashes if it is usable."""
        names: set[str] = set()
        for label, value in fields.items():
            if type(value) is str:
                # Nearly every English text passes this test; only the others get the slow one.
                if not (value.isascii() and value.isprintable() and value[-1:] != " "):
                    self._check_text(label, value, names, problems)
            elif type(value) is list:
                for text in map(str, _calls(fields)) if label == TOOL_CALLS else map(_said, value):
                    if not (text.isascii() and text.isprintable() and text[-1] != " "):
                        self._check_text(label, text, names, problems)
        if self._rules.kind.is_pair:
            self._check_pair(row, fields, names, problems)
        if problems and (problems := self._serious(problems, names)):
            self._refuse(seq, line, own_id, problems, start, row)
            return
        for name in names:
            self._count(name, line)
        if self._rules.kind.is_pair:
            self._result.chosen_longer += len(fields["chosen"]) > len(fields["rejected"])
        key, first, second = _hashes(self._rules.kind, fields)
        self._contents.extend((key, first, second, seq, line))
        if unused:
            self._count_unused(row, unused, key, seq, line)
        if own_id:
            self._note_id(own_id, seq, line, GIVEN)
        if self._wanted.rows:
            others = other_columns(row, unused) if unused and self._rules.kind.keeps_other_columns else {}
            self._keep_row(seq, line, own_id, fields, others)
        if self._wanted.keys:
            self._result.keys.append((seq, line, _key_text(fields)))

    def _check_text(self, label: str, text: str, names: set[str], problems: list[FieldProblem]) -> None:
        """Record the oddities of a text; one whose action is not keep is a problem."""
        for name in oddities(text):
            names.add(name)
            if self._rules.action(name) != "keep":
                problems.append(FieldProblem(label, name, explain(name, text)))

    def _check_pair(self, row: dict[str, Any], fields: dict[str, Any], names: set[str], problems: list[FieldProblem]) -> None:
        chosen, rejected = fields["chosen"], fields["rejected"]
        # The first character decides for nearly every pair, without a copy of two long texts.
        if chosen.lstrip()[:1] in rejected and chosen.strip() == rejected.strip():
            names.add("identical_after_trim")
            message = f"equals rejected but for white space around it: {shown(chosen)}; the completions of a pair must differ"
            problems.append(FieldProblem("chosen", "identical_after_trim", message))
        if self._all_text:
            return
        for name in SCORE_FIELDS:
            if fields[name] is not None and isinstance(row.get(self._file.columns.get(name, name)), str):
                names.add("number_as_text")
                message = f"is the text {shown(str(fields[name]))}; expected a number"
                problems.append(FieldProblem(name, "number_as_text", message))

    def _serious(self, problems: list[FieldProblem], names: set[str]) -> list[FieldProblem]:
        """The problems that make the row unusable; the others become findings."""
        names.update(problem.reason for problem in problems if self._rules.action(problem.reason) == "keep")
        return [problem for problem in problems if self._rules.action(problem.reason) != "keep"]

    def _refuse(
        self,
        seq: int,
        line: int,
        own_id: str | None,
        problems: Sequence[FieldProblem],
        start: int,
        row: Mapping[str, Any] | None = None,
        *,
        cause: RawProblem | None = None,
    ) -> None:
        """Record the problems of an unusable row; `start` is the line of an element of a list, 0 elsewhere."""
        if own_id:
            self._note_id(own_id, seq, line, GIVEN_BAD)
        self._result.bad += 1
        in_list, ends_file = self._in_list and not (cause and cause.of_file), cause is not None and cause.ends_file
        for number, problem in enumerate(problems):
            action = "error" if ends_file else self._rules.action(problem.reason)
            self._result.problems.append(
                Problem(
                    line=start or line,
                    element=line if in_list else 0,
                    pointer=pointer_to(line, problem, self._file.columns, row or {}) if in_list else "",
                    # A number within the block; `Validator` turns it into one within the file.
                    row_number=seq,
                    row_id=own_id or "",
                    field=problem.field,
                    reason=problem.reason,
                    message=problem.message,
                    ends_file=ends_file,
                    action=action,
                    file=self._file.shown,
                    counted=number == 0,
                )
            )

    def _note_id(self, own_id: str, seq: int, line: int, origin: int) -> None:
        start = own_id.encode("utf-8", "surrogatepass")[:ID_SHOWN_BYTES]
        self._ids.append((hash_text(self._salt + own_id), seq, line, origin, start))

    def _count(self, name: str, line: int) -> None:
        self._result.findings.setdefault(name, Tally()).add(self._file.shown, line)

    def _count_unused(self, row: dict[str, Any], unused: tuple[str, ...], key: int, seq: int, line: int) -> None:
        """Check the columns that no field took: they may be labels, or have stray white space."""
        for name in unused:
            value = row[name]
            self._result.unused[name] = None
            if isinstance(value, str) and value != value.rstrip():
                self._count(f"trailing_white_space:{name}", line)
            # Labels contradict each other when prompts are equal; a plain text has no prompt.
            if self._rules.kind.has_prompt and (name in self._labels or len(self._labels) < MAX_LABEL_COLUMNS):
                self._labels.setdefault(name, LabelColumn()).add(key, value, seq, line)

    def _keep_row(self, seq: int, line: int, own_id: str | None, fields: dict[str, Any], others: Mapping[str, str]) -> None:
        # Without the opening brace: id, line and file will stand before these fields, and the hash must not depend on them.
        content = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()[1:]
        row_id = own_id or hashlib.sha256(b"{" + content).hexdigest()[:CONTENT_ID_DIGITS]
        if not own_id:
            self._note_id(row_id, seq, line, MADE)
        if others:
            # After the hash: an id decides the seed of a completion, which another column must not move.
            content = json.dumps({**fields, OTHER_COLUMNS: others}, ensure_ascii=False, separators=(",", ":")).encode()[1:]
        file = json.dumps(self._file.shown, ensure_ascii=False) if self._wanted.file_names else "null"
        index = self._rules.evaluation
        overlap = index.overlap(*_texts(self._rules.kind, fields)) if index is not None else None
        shown_overlap = overlap.describe() if overlap is not None else ""
        self._result.rows.append((seq, row_id, shown_overlap, f',"line":{line},"file":{file},'.encode() + content))


def _key_text(fields: Mapping[str, Any]) -> str:
    """A key that is equal for equal prompts; for a text row, the text itself."""
    prompt = fields.get("prompt")
    if prompt is None:
        return str(fields["text"])
    return "\x00".join([f"{message['role']}:{message['content']}{_tools_key(message)}" for message in prompt])


def _tools_key(message: Mapping[str, Any]) -> str:
    """What a message has of tools: prompts with other tools, calls or results are other prompts."""
    if len(message) == 2:
        return ""
    return json.dumps([message.get("tools"), message.get("tool_calls")], ensure_ascii=False)


def _calls(fields: Mapping[str, Any]) -> list[ToolCall]:
    """The tool calls of an instruction's completion."""
    return [ToolCall(**call) for call in fields.get(TOOL_CALLS, ())]


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message, with its tool calls."""
    return str(message["content"]) if TOOL_CALLS not in message else Message(**message).text


def _texts(kind: DataKind[Any], fields: Mapping[str, Any]) -> Iterator[str]:
    """Every message and completion."""
    for name in kind.sides:
        value = fields[name]
        yield from [value] if isinstance(value, str) else map(_said, value)
    yield from map(str, _calls(fields))


def _hashes(kind: DataKind[Any], fields: Mapping[str, Any]) -> tuple[int, int, int]:
    """Hashes of the prompt (or text) and of the other fields; 0 for an absent field."""
    values = [fields[name] for name in kind.contents]
    if calls := fields.get(TOOL_CALLS):
        values[0] = f"{values[0]}{calls}"
    # Padded with zeros, because a kind may have fewer than two such fields.
    first, second, *_ = (*(0 if value is None else hash_text(str(value)) for value in values), 0, 0)
    return hash_text(_key_text(fields)), first, second


def _record(kind: DataKind[Any], line: int, fields: Mapping[str, Any]) -> Any:
    """The record of fields that are already checked, so pydantic need not check them again."""
    prompt = fields.get("prompt")
    messages = {} if prompt is None else {"prompt": list(map(_message, prompt))}
    calls = {TOOL_CALLS: _calls(fields)} if TOOL_CALLS in fields else {}
    return kind.record.model_construct(id="", line=line, **{**fields, **messages, **calls})


def _message(fields: Mapping[str, Any]) -> Message:
    return Message.model_construct(**fields) if TOOL_CALLS not in fields else Message(**fields)
