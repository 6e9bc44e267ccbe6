"""Scored candidates in Parquet: checked and compared in columns, read a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.errors import DataError, StageError
from align.formats.parquet_footer import read_row_groups
from align.formats.parquet_pages import group_batch_rows
from align.formats.raw import MAX_LINE_BYTES
from align.formats.unpacked import TooLarge
from align.selection.candidate import PromptCandidates, two_prompts
from align.selection.files.reader import SCORE_FORMS, SCORE_PREFIX, FileRange, PromptStart, RowFile
from align.system_errors import system_problem
from align.written import mapped_columns

READ_BYTES = 1 << 20
"""Column chunks are read in pieces of this size: a row group of any size fits in memory."""
CHUNK_ROWS = 8192
ID_ROWS = 1 << 16
PROMPT_NUMBER = "prompt_number"
_DAMAGE = (pa.ArrowException, OSError, EOFError, MemoryError, UnicodeDecodeError)
"""What pyarrow raises at a damaged file. A flipped bit can ask for any amount of memory, or spoil a column's name."""


class ParquetReader:
    """Reads one file, whatever it calls our fields and in whichever of the known forms they are."""

    def __init__(self, file: RowFile) -> None:
        self._file = file
        try:
            self._parquet = pq.ParquetFile(file.path, buffer_size=READ_BYTES, pre_buffer=False)
            self._groups = read_row_groups(file.path)
            self._schema = self._parquet.schema_arrow
            for place in range(len(self._parquet.schema)):
                _ = self._parquet.schema.column(place).path  # which fails if a name is not UTF-8
        except _DAMAGE as error:
            refused = system_problem(error, file.path)
            unreadable = DataError(f"{file.path}: cannot be read as Parquet ({error})", hint="Write the file again.")
            raise refused or unreadable from None
        self._group_bounds = list(pairwise(accumulate((group.num_rows for group in self._groups), initial=0)))
        """First row of every row group, and the row after its last."""

    def check(self) -> None:
        for field in ("prompt_id", "prompt", "completion"):
            self._require(field)
        names = self._schema.names
        if not self.score_names() and self._file.column("scores") not in names and not self._file.has_scores(names):
            raise DataError(f"{self._file.path}: no score: expected {SCORE_FORMS}; it has {', '.join(names)}")

    def runs(self) -> Iterator[PromptStart]:
        for group, (row, _) in enumerate(self._group_bounds):
            may_cut = True
            for (column,) in self._batches([group], [self._require("prompt_id")], ID_ROWS):
                ids = self._ids(column, row)
                starts = run_starts(ids)
                for start, prompt_id in zip(starts.tolist(), ids.take(pa.array(starts)).to_pylist(), strict=True):
                    yield PromptStart(prompt_id, row + start, row + start, may_cut)
                    may_cut = False
                row += len(ids)
        rows = self._group_bounds[-1][1] if self._group_bounds else 0
        yield PromptStart(None, rows, rows)

    def parts(self, piece: FileRange, scorers: Sequence[str]) -> Iterator[PromptCandidates]:
        for columns in self.columns(piece, scorers):
            yield from _parts_of(columns, scorers)

    def columns(self, piece: FileRange, scorers: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of a piece as Arrow arrays, by column.

        prompt_id, prompt, completion, candidate_index and finish_reason where the file has them, a `scores.NAME` per scorer.

        Raises:
            DataError: if a column is missing or of the wrong type, or a value is missing. StageError: if a score is.
        """
        columns = {name: self._require(name) for name in ("prompt_id", "prompt", "completion")}
        optional = {name: self._file.column(name) for name in ("candidate_index", "finish_reason")}
        columns |= {name: column for name, column in optional.items() if column in self._schema.names}
        places = {name: self._score_place(name) for name in scorers}
        names = list(dict.fromkeys([*columns.values(), *(column for column, _ in places.values())]))
        groups = [group for group, (first, stop) in enumerate(self._group_bounds) if first < piece.stop and stop > piece.start]
        row = self._group_bounds[groups[0]][0] if groups else 0
        for arrays in self._batches(groups, names, CHUNK_ROWS):
            # A piece may end inside a row group, where its last prompt ends; the rest belongs to the next task.
            if row >= piece.stop:
                return
            first, row = row, row + len(arrays[0])
            skip = max(piece.start - first, 0)
            if piece.start >= row:
                continue
            taken = {name: array[skip : piece.stop - first] for name, array in zip(names, arrays, strict=True)}
            checked = {field: self._checked(field, taken[column], first + skip) for field, column in columns.items()}
            for name, (column, inner) in places.items():
                checked[SCORE_PREFIX + name] = self._scores(taken[column], inner, name, first + skip)
            yield checked

    def _batches(self, groups: Sequence[int], columns: list[str], rows: int) -> Iterator[list[Any]]:
        path, described = self._file.path, [self._groups[group] for group in groups]
        try:
            fitting = group_batch_rows(path, described, self._parquet.schema, rows, columns=columns)
            for group, most in zip(groups, fitting, strict=True):
                for batch in self._parquet.iter_batches(most, row_groups=[group], columns=columns, use_threads=False):
                    batch.validate(full=True)  # reading damaged values unchecked could end the process
                    yield [batch.column(batch.schema.get_field_index(name)) for name in columns]
        except TooLarge as error:
            raise DataError(
                f"{path}: {error}, which is more than any row may have ({MAX_LINE_BYTES:,})",
                hint="Write the file again without it.",
            ) from None
        except _DAMAGE as error:
            found = "a text is not UTF-8" if "UTF8" in str(error) else f"damaged ({error})"
            raise system_problem(error, path) or DataError(f"{path}: {found}", hint="Write the file again.") from None

    def _require(self, field: str) -> str:
        column = self._file.column(field)
        if column not in self._schema.names:
            raise DataError(
                f"{self._file.path}: no column '{column}' for {field}; it has {', '.join(self._schema.names)}",
                hint=f"Say which column it is: {mapped_columns({field: '…'})}",
            )
        return column

    def _checked(self, field: str, array: Any, row: int) -> Any:
        if field == "prompt_id":
            return self._ids(array, row)
        if field == "prompt" and (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            return self._messages(array, row)
        if field == "candidate_index":
            self._no_nulls(field, array, row)
            if not pa.types.is_integer(array.type):
                raise self._wrong_type(field, array, "whole numbers")
            numbers = array.cast(pa.int64(), safe=False)  # what has 64 bits becomes negative
            self._refuse(pc.less(numbers, 0), row, "candidate_index: expected a whole number, 0 or more, of at most 63 bits")
            return numbers
        texts = self._texts(field, array)
        if field == "finish_reason":
            # None is among them: a candidate without a reason counts as complete.
            known = pc.is_in(texts, pa.array(["stop", "length", None], pa.string()))
            self._refuse(pc.invert(known), row, "finish_reason: expected stop or length")
        else:
            self._no_nulls(field, texts, row)
        return texts

    def _ids(self, array: Any, row: int) -> Any:
        self._no_nulls("prompt_id", array, row)
        # As JSON Lines: the number 7 and the text "7" are one id.
        if pa.types.is_integer(array.type):
            array = array.cast(pa.string())
        ids = self._texts("prompt_id", array)
        self._refuse(pc.equal(ids, ""), row, "prompt_id: must not be empty")
        return ids

    def _texts(self, field: str, array: Any) -> Any:
        # A pandas categorical is written as a dictionary; a column of None alone has the type null.
        value_type = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        if not (_is_text(value_type) or pa.types.is_null(value_type)):
            raise self._wrong_type(field, array, "texts")
        return array.cast(pa.string())

    def _messages(self, array: Any, row: int) -> Any:
        self._no_nulls("prompt", array, row)
        message = array.type.value_type
        if not pa.types.is_struct(message) or not {"role", "content"} <= _field_names(message):
            raise self._wrong_type("prompt", array, "texts, or lists of messages with role and content")
        return _only_role_and_content(array)

    def _score_place(self, name: str) -> tuple[str, str | None]:
        """The column of a score, and the field inside it where the column holds the scores of all scorers."""
        scores = self._file.column("scores")
        if scores in self._schema.names:
            kind = self._schema.field(scores).type
            if (pa.types.is_map(kind) and _is_text(kind.key_type)) or (
                pa.types.is_struct(kind) and kind.get_field_index(name) >= 0
            ):
                return scores, name
        for column in (self._file.column(SCORE_PREFIX + name), *([self._file.column("score")] if name == "score" else [])):
            if column in self._schema.names:
                return column, None
        raise StageError(
            f"{self._file.path}: no score by {name!r}; it has {', '.join(self.score_names()) or 'none'}",
            hint="Name one of the scores that the file has.",
        )

    def score_names(self) -> list[str]:
        """Names of the scores in the schema; a map has its names only in the rows."""
        names: list[str] = []
        scores = self._file.column("scores")
        if scores in self._schema.names and pa.types.is_struct(kind := self._schema.field(scores).type):
            names += sorted(_field_names(kind))
        names += [name.removeprefix(SCORE_PREFIX) for name in self._schema.names if name.startswith(SCORE_PREFIX)]
        return names + [name for name in self._schema.names if name == "score"]

    def _scores(self, array: Any, inner: str | None, name: str, row: int) -> Any:
        if inner is not None and pa.types.is_map(array.type):
            # map_lookup gives null both for an absent key, which is an error, and for a null score, which is not.
            key = pa.scalar(inner, array.type.key_type)
            self._refuse(pc.is_null(pc.map_lookup(array, key, "all")), row, f"no score by {name!r}")
            array = pc.map_lookup(array, key, "first")
        elif inner is not None:
            array = pc.struct_field(array, inner)
        kind = array.type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
            raise self._wrong_type(SCORE_PREFIX + name, array, "numbers")
        # A safe cast refuses whole numbers above 2**53, which a float can only round.
        return array.cast(pa.float64(), safe=False)

    def _no_nulls(self, field: str, array: Any, row: int) -> None:
        if array.null_count:
            self._refuse(array.is_null(), row, f"{field}: expected a value, got nothing")

    def _refuse(self, wrong: Any, row: int, problem: str) -> None:
        place = pc.index(wrong, value=True).as_py()
        if place >= 0:
            raise self._file.wrong(row + place + 1, problem)

    def _wrong_type(self, field: str, array: Any, expected: str) -> DataError:
        return DataError(
            f"{self._file.path}: {field}: expected {expected}, got a column of {array.type}",
            hint="Write the column in that type, or name another one under columns.",
        )


def run_starts(ids: Any) -> Any:
    """Row 0 and every row whose id differs from the row before."""
    changes = pc.not_equal(ids[1:], ids[: max(len(ids) - 1, 0)]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.append([len(ids) > 0], changes))


def _parts_of(columns: dict[str, Any], scorers: Sequence[str]) -> Iterator[PromptCandidates]:
    """Plain lists for each run of rows of one prompt. All rows of a run must have the same prompt."""
    starts = run_starts(columns["prompt_id"])
    ids = columns["prompt_id"].take(pa.array(starts)).to_pylist()
    run_prompts = columns["prompt"].take(pa.array(starts)).to_pylist()
    texts, prompts = columns["completion"].to_pylist(), columns["prompt"]
    bounds = list(pairwise([*starts.tolist(), len(prompts)]))
    first_of_run = prompts.take(pa.array(np.repeat(starts, [stop - start for start, stop in bounds])))
    # One comparison of columns in place of one per row in Python. The lists below are made for the error message alone.
    if not prompts.equals(first_of_run):
        different = (first != prompt for first, prompt in zip(first_of_run.to_pylist(), prompts.to_pylist(), strict=True))
        row = next(row for row, differs in enumerate(different) if differs)
        raise two_prompts(columns["prompt_id"][row].as_py())
    indices = columns["candidate_index"].to_pylist() if "candidate_index" in columns else []
    truncated = [False] * len(texts)
    if "finish_reason" in columns:
        truncated = pc.fill_null(pc.equal(columns["finish_reason"], "length"), fill_value=False).to_pylist()
    scores = [columns[SCORE_PREFIX + name].to_pylist() for name in scorers]
    for prompt_id, prompt, (start, stop) in zip(ids, run_prompts, bounds, strict=True):
        yield PromptCandidates(
            prompt_id,
            prompt,
            indices[start:stop],
            texts[start:stop],
            truncated[start:stop],
            [column[start:stop] for column in scores],
        )


def read_partition(path: Path, scorers: Sequence[str]) -> Iterator[PromptCandidates]:
    """The candidates in an Arrow stream that `regroup` wrote, sorted by the number of their prompt."""
    with pa.ipc.open_stream(path) as stream:
        table = stream.read_all()
    # Stable: the candidates of a prompt keep the order of the files, which numbers those without a candidate_index.
    order = table[PROMPT_NUMBER].to_numpy().argsort(kind="stable")
    # Rows take far more memory as Python objects than in Arrow's columns, so a few thousand at a time become objects.
    for start in range(0, len(order), CHUNK_ROWS):
        (batch,) = table.take(pa.array(order[start : start + CHUNK_ROWS])).combine_chunks().to_batches()
        yield from _parts_of({name: batch[name] for name in batch.schema.names}, scorers)


def _only_role_and_content(array: Any) -> Any:
    """Messages without their other fields, which no prompt keeps."""
    messages = pc.list_flatten(array)
    kept = [pc.struct_field(messages, name).cast(pa.string()) for name in ("role", "content")]
    # The offsets of a slice do not begin at 0, but its flattened messages do.
    offsets = pc.subtract(array.offsets, array.offsets[0]).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(kept, ["role", "content"]))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _field_names(struct: Any) -> set[str]:
    return {struct.field(place).name for place in range(struct.num_fields)}
