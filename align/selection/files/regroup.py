"""Bring the candidates of a prompt together where they are scattered over files, without holding them all in memory.

Prompts are numbered in the order in which they first appear, and their candidates go to partition files by that number. Each
partition is small enough to be read whole and sorted by the number. The sort is stable: the candidates of a prompt stay in the
order of the files, and the partitions, read one after the other, have the prompts in the order of their first appearance.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json, to_json

from align.errors import DataError
from align.selection.candidate import PromptCandidates, joined
from align.selection.files.layout import Layout, hash_of
from align.store.atomic import sync_tree, write_json

PARTITION_ROWS = 1 << 16
MAX_PARTITIONS = 512
"""Each is an open file."""
BATCH_PARTS = 4096
DONE_NAME = "regrouped.json"


class Partition(NamedTuple):
    """A task of some prompts: an Arrow stream of rows from Parquet, or lines of `number PromptCandidates` from JSON Lines."""

    path: Path

    def parts(self, scorers: Sequence[str]) -> Iterator[PromptCandidates]:
        """The parts by rising number of their prompt; the file holds the scores by `scorers` only."""
        if self.path.suffix == ".arrow":
            from align.selection.files.parquet import read_partition

            return read_partition(self.path, scorers)
        with self.path.open("rb") as stream:
            numbered = [line.split(b" ", 1) for line in stream]
        numbered.sort(key=lambda entry: int(entry[0]))
        return (PromptCandidates(*from_json(content)) for _, content in numbered)


class _PromptNumbers:
    """The number of every prompt, by the hash of its id, and the partition of every number."""

    def __init__(self, layout: Layout) -> None:
        self._hashes, first = np.unique(layout.hashes, return_index=True)
        # `unique` sorts by hash. The rank of the first position is the prompt's number in the order of first appearance.
        self._numbers = np.argsort(np.argsort(first))
        self.num_partitions = min(MAX_PARTITIONS, -(-layout.num_rows // PARTITION_ROWS))
        self.prompts_each = -(-len(first) // self.num_partitions)

    def of(self, prompt_ids: Sequence[str]) -> Any:
        hashes = np.array([hash_of(prompt_id) for prompt_id in prompt_ids], dtype=np.uint64)
        return self._numbers[np.searchsorted(self._hashes, hashes)]


def regroup(layout: Layout, scorers: Sequence[str], folder: Path) -> list[Partition]:
    """Write the candidates to partitions, the candidates of every prompt in one of them.

    Args:
        layout: of the files.
        folder: where they are written; what an earlier attempt finished there is used.
    Raises:
        DataError: if the files differ in format or, in Parquet, in their columns; or as the readers do.
    """
    suffixes = {piece.file.path.suffix for task in layout.tasks for piece in task.pieces}
    if len(suffixes) > 1:
        raise DataError(
            f"rows of one prompt are scattered over files of several formats ({', '.join(sorted(suffixes))})",
            hint="Write all files in one format.",
        )
    is_parquet = suffixes == {".parquet"}
    numbers = _PromptNumbers(layout)
    paths = [folder / f"part-{index:05d}.{'arrow' if is_parquet else 'jsonl'}" for index in range(numbers.num_partitions)]
    # A partition that a kill cut short looks like a whole one, so without the mark all are written again.
    if not (folder / DONE_NAME).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (_write_arrow if is_parquet else _write_lines)(layout, scorers, numbers, paths)
        # The mark comes last and after the sync: where it is, the partitions are on disk.
        sync_tree(folder)
        write_json(folder / DONE_NAME, {"rows": layout.num_rows})
    return [Partition(path) for path in paths]


def _write_lines(layout: Layout, scorers: Sequence[str], numbers: _PromptNumbers, paths: Sequence[Path]) -> None:
    # Joining neighbours first makes one line of them, with the prompt written once.
    parts = joined(part for task in layout.tasks for part in task.parts(scorers))
    with ExitStack() as stack:
        sinks = [stack.enter_context(path.open("wb")) for path in paths]
        while batch := list(islice(parts, BATCH_PARTS)):
            for number, part in zip(numbers.of([part.prompt_id for part in batch]).tolist(), batch, strict=True):
                # NaN and infinities must survive the way, so that selection drops them with their reason.
                sinks[number // numbers.prompts_each].write(b"%d %s\n" % (number, to_json(part, inf_nan_mode="constants")))


def _write_arrow(layout: Layout, scorers: Sequence[str], numbers: _PromptNumbers, paths: Sequence[Path]) -> None:
    """Rows stay in columns on the way: as Python objects they took twice the processor time."""
    import pyarrow as pa

    from align.selection.files.parquet import PROMPT_NUMBER, ParquetReader, run_starts

    pieces = [piece for task in layout.tasks for piece in task.pieces]
    schema: Any = None
    with ExitStack() as stack:
        for piece in pieces:
            for columns in ParquetReader(piece.file).columns(piece, scorers):
                ids = columns["prompt_id"]
                starts = run_starts(ids)
                of_run = numbers.of(ids.take(pa.array(starts)).to_pylist())
                row_numbers = np.repeat(of_run, np.diff(starts, append=len(ids)))
                batch = pa.RecordBatch.from_pydict({**columns, PROMPT_NUMBER: pa.array(row_numbers)})
                if schema is None:
                    schema = batch.schema
                    sinks = [stack.enter_context(pa.ipc.new_stream(path, schema)) for path in paths]
                if batch.schema != schema:
                    raise DataError(
                        f"{piece.file.path}: has other columns than {pieces[0].file.path}, and rows of one prompt are in both",
                        hint="Give all files the same columns: candidate_index, finish_reason and the same form of prompt.",
                    )
                partitions = row_numbers // numbers.prompts_each
                # Sorted by partition, so that each one gets a single `take` and write per batch instead of one per row.
                order = np.argsort(partitions, kind="stable")
                present, first = np.unique(partitions[order], return_index=True)
                for partition, rows in zip(present.tolist(), np.split(order, first[1:]), strict=True):
                    sinks[partition].write_batch(batch.take(pa.array(rows)))
