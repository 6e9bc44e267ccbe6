"""Scored candidates in JSON Lines: what the score stage writes, and files of the same fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from pydantic_core import from_json

from align.formats.raw import LONG_CHARACTERS, MAX_LINE_BYTES, too_many_values
from align.rows.problem import shown
from align.selection.candidate import PromptCandidates, no_score
from align.selection.files.reader import SCORE_FORMS, SCORE_PREFIX, FileRange, PromptStart, RowFile
from align.strict import unique_keys

FINISH_REASONS = {None: False, "stop": False, "length": True}
_WITH_UNIQUE_KEYS = json.JSONDecoder(object_pairs_hook=unique_keys, parse_int=str)


class JsonlReader:
    """Reads a file line by line; empty lines are no rows."""

    def __init__(self, file: RowFile) -> None:
        self._file = file
        # Our own rows begin with the id, which then need not be looked for.
        self._beginning = f'{{"{file.column("prompt_id")}":"'.encode()

    def check(self) -> None:
        with self._file.path.open("rb") as stream:
            lines = enumerate(self._lines(stream), start=1)
            number, line = next(((number, line) for number, line in lines if not line.isspace()), (1, b""))
        # One row: the others are checked when they are read, and a file may have millions.
        row = self._parsed(line, number)
        if not score_names(row, row.get(self._file.column("scores"))) and not self._file.has_scores(row):
            raise self._file.wrong(number, f"no score: expected {SCORE_FORMS}; it has {', '.join(row)}")
        self._candidate(row, number, ())

    def runs(self) -> Iterator[PromptStart]:
        last_raw: bytes | None = None
        last_id = prompt_id = None
        position = number = 0
        with self._file.path.open("rb") as stream:
            for number, line in enumerate(self._lines(stream), start=1):
                raw = self._raw_id(line)
                if raw is not None or not line.isspace():
                    # Candidates of one prompt mostly follow each other, so that parsing one row of each is enough.
                    if raw is None or raw != last_raw:
                        last_raw, prompt_id = raw, self._prompt_id(self._parsed(line, number), number)
                    if prompt_id != last_id:
                        last_id = prompt_id
                        yield PromptStart(prompt_id, position, number - 1)
                position += len(line)
        yield PromptStart(None, position, number)

    def parts(self, piece: FileRange, scorers: Sequence[str]) -> Iterator[PromptCandidates]:
        position, number = piece.start, piece.row
        with self._file.path.open("rb") as stream:
            stream.seek(position)
            for line in self._lines(stream, rows_before=number):
                if position >= piece.stop:
                    return
                position += len(line)
                number += 1
                if not line.isspace():
                    yield self._candidate(self._parsed(line, number), number, scorers)

    def _lines(self, stream: IO[bytes], rows_before: int = 0) -> Iterator[bytes]:
        number = rows_before
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise self._file.wrong(number, f"the line is longer than {MAX_LINE_BYTES:,} bytes")
            yield line

    def _raw_id(self, line: bytes) -> bytes | None:
        """The id of a row as it is written, if the row begins with it; equal bytes are equal ids."""
        if not line.startswith(self._beginning):
            return None
        begin = len(self._beginning)
        raw = line[begin : line.find(b'"', begin)]
        # An escape can spell the same id in other bytes, so such a row must be parsed.
        return None if b"\\" in raw else raw

    def _parsed(self, line: bytes, number: int) -> Mapping[str, Any]:
        if len(line) > LONG_CHARACTERS and (problem := too_many_values(line.decode(errors="replace"))):
            raise self._file.wrong(number, problem)
        try:
            row = from_json(line)
        except ValueError as error:
            raise self._file.wrong(number, f"not JSON ({error})") from None
        if not isinstance(row, dict):
            raise self._file.wrong(number, "expected a JSON object")
        scores = row.get(self._file.column("scores"))
        # `from_json` takes the last of two equal keys. Every key has a colon, so there are none if each colon is a key's.
        if line.count(b":") > len(row) + (len(scores) if isinstance(scores, dict) else 0):
            try:
                _WITH_UNIQUE_KEYS.decode(line.decode())
            except ValueError as error:
                raise self._file.wrong(number, f"not usable JSON: {error}") from None
        return row

    def _prompt_id(self, row: Mapping[str, Any], number: int) -> str:
        value = row.get(self._file.column("prompt_id"))
        # Python counts True as an int.
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value:
            raise self._file.wrong(number, f"prompt_id: expected a text, got {_shown(value)}")
        return value

    def _candidate(self, row: Mapping[str, Any], number: int, scorers: Sequence[str]) -> PromptCandidates:
        """A row, checked."""
        column, wrong = self._file.column, self._file.wrong
        prompt_id = self._prompt_id(row, number)
        prompt, text = row.get(column("prompt")), row.get(column("completion"))
        index, reason = row.get(column("candidate_index")), row.get(column("finish_reason"))
        if not isinstance(prompt, (str, list)):
            raise wrong(number, f"prompt: expected a text or a list of messages, got {_shown(prompt)}")
        if not isinstance(text, str):
            raise wrong(number, f"completion: expected a text, got {_shown(text)}")
        if index is not None and (not isinstance(index, int) or isinstance(index, bool) or index < 0):
            raise wrong(number, f"candidate_index: expected a whole number, 0 or more, got {_shown(index)}")
        if not isinstance(reason, (str, type(None))) or reason not in FINISH_REASONS:
            raise wrong(number, f"finish_reason: expected stop or length, got {_shown(reason)}")
        scores = [[self._score(row, number, name, prompt_id, index)] for name in scorers]
        return PromptCandidates(prompt_id, prompt, [] if index is None else [index], [text], [FINISH_REASONS[reason]], scores)

    def _score(self, row: Mapping[str, Any], number: int, name: str, prompt_id: str, index: int | None) -> float | None:
        column, scores = self._file.column(SCORE_PREFIX + name), row.get(self._file.column("scores"))
        if isinstance(scores, dict) and name in scores:
            value = scores[name]
        elif column in row or (name == "score" and (column := self._file.column("score")) in row):
            value = row[column]
        else:
            raise no_score(prompt_id, number - 1 if index is None else index, name, score_names(row, scores))
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self._file.wrong(number, f"score by {name}: expected a number or null, got {_shown(value)}")
        try:
            # JSON's whole numbers have no limit in Python; a float's do.
            return float(value)
        except OverflowError:
            raise self._file.wrong(number, f"score by {name}: the number is too large") from None


def score_names(row: Mapping[str, Any], scores: Any) -> list[str]:
    """Names of the scores that a row has."""
    names = list(scores) if isinstance(scores, dict) else []
    return names + [column.removeprefix(SCORE_PREFIX) for column in row if column.startswith(SCORE_PREFIX) or column == "score"]


def _shown(value: Any) -> str:
    return "nothing" if value is None else shown(value)
