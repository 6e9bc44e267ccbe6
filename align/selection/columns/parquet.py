"""Scored candidates in Parquet: checked and compared in columns, read a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.errors import DataError, StageError
from align.selection.candidate import two_prompts
from align.selection.columns.chunk import CHUNK_ROWS, SCORE_FORMS, SCORE_PREFIX, Chunk, Piece, RowFile, Run

READ_BYTES = 1 << 20
"""Column chunks are read in pieces of this size: a row group of any size fits in memory."""
ID_ROWS = 1 << 16


class ParquetReader:
    """Reads one file; `table_rows` gives our fields, whatever the file calls them and in whichever of the known forms."""

    def __init__(self, file: RowFile) -> None:
        self._file = file
        try:
            self._parquet = pq.ParquetFile(file.path, buffer_size=READ_BYTES, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file.path}: cannot be read as Parquet ({error})", hint="Write the file again.") from None
        self._schema = self._parquet.schema_arrow
        metadata = self._parquet.metadata
        self._group_rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def check(self) -> None:
        for field in ("prompt_id", "prompt", "completion"):
            self._require(field)
        names = self._schema.names
        if not self.score_names() and self._file.column("scores") not in names and not self._file.has_scores(names):
            raise DataError(f"{self._file.path}: no score: expected {SCORE_FORMS}; it has {', '.join(names)}")

    def size(self) -> tuple[int, int]:
        rows = self._parquet.metadata.num_rows
        return rows, rows

    def runs(self) -> Iterator[Run]:
        before = 0
        for group, rows in enumerate(self._group_rows):
            may_cut = True
            for (ids,) in self._batches([group], [self._require("prompt_id")], ID_ROWS):
                column = self._ids(ids, before)
                starts = run_starts(column)
                for start, prompt_id in zip(starts.to_pylist(), column.take(starts).to_pylist(), strict=True):
                    yield Run(prompt_id, before + start, before + start, may_cut)
                    may_cut = False
                before += len(column)
            assert before == sum(self._group_rows[: group + 1]), rows

    def chunks(self, piece: Piece, scorers: Sequence[str]) -> Iterator[Chunk]:
        for batch in self.table_rows(piece, scorers):
            try:
                chunk = chunk_of(batch, scorers)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self._file.path}: a text is not UTF-8 ({error.reason})", hint="Write the file again."
                ) from None
            yield chunk

    def table_rows(self, piece: Piece, scorers: Sequence[str]) -> Iterator[Any]:
        """The rows of a piece as record batches of prompt_id, prompt, completion, candidate_index and finish_reason where the
        file has them, and a `scores.NAME` per scorer.

        Raises:
            DataError: if a column is missing or of the wrong type, or a value is missing. StageError: if a score is.
        """
        columns = {name: self._require(name) for name in ("prompt_id", "prompt", "completion")}
        optional = {name: self._file.column(name) for name in ("candidate_index", "finish_reason")}
        columns |= {name: column for name, column in optional.items() if column in self._schema.names}
        places = [self._score_place(name) for name in scorers]
        names = list(dict.fromkeys([*columns.values(), *(column for column, _ in places)]))
        first_group, before = self._group_at(piece.start)
        groups = list(range(first_group, self._group_at(piece.stop - 1)[0] + 1)) if piece.stop > piece.start else []
        for arrays in self._batches(groups, names, CHUNK_ROWS):
            row = before
            before += len(arrays[0])
            skip = max(piece.start - row, 0)
            length = min(piece.stop, before) - row - skip
            if length <= 0:
                if row >= piece.stop:
                    return
                continue
            taken = {name: array.slice(skip, length) for name, array in zip(names, arrays, strict=True)}
            checked = {field: self._checked(field, taken[column], row + skip) for field, column in columns.items()}
            for scorer, (column, inner) in zip(scorers, places, strict=True):
                checked[SCORE_PREFIX + scorer] = self._scores(taken[column], inner, scorer, row + skip)
            yield pa.RecordBatch.from_pydict(checked)

    def _batches(self, groups: Sequence[int], columns: list[str], rows: int) -> Iterator[list[Any]]:
        try:
            for batch in self._parquet.iter_batches(rows, row_groups=list(groups), columns=columns, use_threads=False):
                yield [batch.column(batch.schema.get_field_index(name)) for name in columns]
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{self._file.path}: damaged ({error})", hint="Write the file again.") from None

    def _group_at(self, row: int) -> tuple[int, int]:
        """The row group that has a row, and the rows before the group."""
        before = 0
        for group, rows in enumerate(self._group_rows):
            if row < before + rows:
                return group, before
            before += rows
        return len(self._group_rows), before

    def _require(self, field: str) -> str:
        column = self._file.column(field)
        if column not in self._schema.names:
            raise DataError(
                f"{self._file.path}: no column '{column}' for {field}; it has {', '.join(self._schema.names)}",
                hint=f"Say which column it is: columns: {{{field}: …}}",
            )
        return column

    def _checked(self, field: str, array: Any, row: int) -> Any:
        if field == "prompt_id":
            return self._ids(array, row)
        if field == "prompt" and _is_list(array.type):
            return self._messages(array, row)
        if field == "candidate_index":
            self._no_nulls(field, array, row)
            if not pa.types.is_integer(array.type):
                raise self._wrong_type(field, array, "whole numbers")
            self._refuse(pc.less(array, 0), row, "candidate_index: expected a whole number, 0 or more")
            return array.cast(pa.int64())
        texts = self._texts(field, array)
        if field == "finish_reason":
            known = pc.is_in(texts, pa.array(["stop", "length", None], pa.string()))
            self._refuse(pc.invert(known), row, "finish_reason: expected stop or length")
        else:
            self._no_nulls(field, texts, row)
        return texts

    def _ids(self, array: Any, row: int) -> Any:
        self._no_nulls("prompt_id", array, row)
        if pa.types.is_integer(array.type):
            array = array.cast(pa.string())
        ids = self._texts("prompt_id", array)
        self._refuse(pc.equal(ids, ""), row, "prompt_id: must not be empty")
        return ids

    def _texts(self, field: str, array: Any) -> Any:
        value_type = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or pa.types.is_null(value_type)):
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
            if pa.types.is_map(kind) or (pa.types.is_struct(kind) and kind.get_field_index(name) >= 0):
                return scores, name
        for column in (self._file.column(SCORE_PREFIX + name), *([self._file.column("score")] if name == "score" else [])):
            if column in self._schema.names:
                return column, None
        raise self._no_score(name)

    def _no_score(self, name: str) -> StageError:
        return StageError(
            f"{self._file.path}: no score by {name!r}; it has {', '.join(self.score_names()) or 'none'}",
            hint="Name one of the scores that the file has.",
        )

    def score_names(self) -> list[str]:
        """Names of the scores that the schema tells of; those of a map are in its rows only."""
        names: list[str] = []
        scores = self._file.column("scores")
        if scores in self._schema.names and pa.types.is_struct(kind := self._schema.field(scores).type):
            names += sorted(_field_names(kind))
        names += [name.removeprefix(SCORE_PREFIX) for name in self._schema.names if name.startswith(SCORE_PREFIX)]
        return names + [name for name in self._schema.names if name == "score"]

    def _scores(self, array: Any, inner: str | None, name: str, row: int) -> Any:
        if inner is not None and pa.types.is_map(array.type):
            self._refuse(pc.invert(_has_key(array, inner)), row, f"no score by {name!r}")
            array = pc.map_lookup(array, pa.scalar(inner, array.type.key_type), "first")
        elif inner is not None:
            array = pc.struct_field(array, inner)
        kind = array.type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
            raise self._wrong_type(SCORE_PREFIX + name, array, "numbers")
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
    """Rows whose id is another than that of the row before, and row 0."""
    changes = pc.indices_nonzero(pc.not_equal(ids.slice(1), ids.slice(0, max(len(ids) - 1, 0))))
    return pa.concat_arrays([pa.array([0] if len(ids) else [], pa.int64()), pc.add(changes.cast(pa.int64()), 1)])


def chunk_of(batch: Any, scorers: Sequence[str]) -> Chunk:
    """Plain lists of a record batch; of a prompt's rows only the first one's prompt, which the others must equal."""
    starts = run_starts(batch["prompt_id"])
    prompt_ids = batch["prompt_id"].take(starts).to_pylist()
    _require_equal_prompts(batch["prompt"], starts, prompt_ids)
    names, reasons = batch.schema.names, None
    if "finish_reason" in names:
        reasons = pc.fill_null(pc.equal(batch["finish_reason"], "length"), fill_value=False).to_pylist()
    return Chunk(
        starts.to_pylist(),
        prompt_ids,
        batch["prompt"].take(starts).to_pylist(),
        batch["candidate_index"].to_pylist() if "candidate_index" in names else None,
        batch["completion"].to_pylist(),
        reasons if reasons is not None else [False] * len(batch),
        [batch[SCORE_PREFIX + name].to_pylist() for name in scorers],
    )


def _require_equal_prompts(prompts: Any, starts: Any, prompt_ids: Sequence[str]) -> None:
    import numpy as np

    begin = starts.to_numpy()
    lengths = np.diff(begin, append=len(prompts))
    first = prompts.take(pa.array(np.repeat(begin, lengths)))
    same = np.ones(len(prompts), dtype=bool)
    if _is_list(prompts.type):
        same = pc.equal(pc.list_value_length(prompts), pc.list_value_length(first)).to_numpy(zero_copy_only=False)
        if same.all():
            rows = pc.list_parent_indices(prompts).to_numpy()
            for name in ("role", "content"):
                pairs = [pc.fill_null(pc.struct_field(pc.list_flatten(side), name), "\0") for side in (prompts, first)]
                same[rows[~pc.equal(*pairs).to_numpy(zero_copy_only=False)]] = False
    else:
        same = pc.equal(prompts, first).to_numpy(zero_copy_only=False)
    if not same.all():
        raise two_prompts(prompt_ids[int(np.searchsorted(begin, np.argmin(same), side="right")) - 1])


def _only_role_and_content(array: Any) -> Any:
    """Messages without their other fields, which no prompt keeps."""
    messages = pc.list_flatten(array)
    kept = [pc.struct_field(messages, name).cast(pa.string()) for name in ("role", "content")]
    offsets = pc.subtract(array.offsets, array.offsets[0]).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(kept, ["role", "content"]))


def _field_names(struct: Any) -> set[str]:
    return {struct.field(place).name for place in range(struct.num_fields)}


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _has_key(array: Any, key: str) -> Any:
    """Whether each map of an array has the key."""
    return pc.is_valid(pc.map_lookup(array, pa.scalar(key, array.type.key_type), "all"))
