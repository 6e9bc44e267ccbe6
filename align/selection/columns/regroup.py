"""Bring the rows of a prompt together where they are scattered over files, without holding them all in memory.

Prompts are numbered in the order in which they are first seen. Rows go to a few dozen partitions by that number; each partition
is then sorted by it, the rows of a prompt staying in their order. So the new files, read one after the other, have the prompts in
the order of their first appearance.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.errors import DataError
from align.selection.columns.chunk import Piece, RowFile
from align.selection.columns.jsonl import JsonlReader
from align.selection.columns.layout import Layout, hash_of
from align.selection.columns.open import open_file
from align.store.atomic import sync_tree, write_json

PARTITION_ROWS = 1 << 17
MAX_PARTITIONS = 256
"""Each is an open file."""
DONE_NAME = "regrouped.json"


def regroup(files: Sequence[RowFile], layout: Layout, scorers: Sequence[str], folder: Path) -> list[RowFile]:
    """Files with the same rows, the rows of every prompt together.

    Args:
        folder: where they are written; what an earlier attempt finished there is used.
    Raises:
        DataError: if the files do not have one form, so that their rows cannot stand in one file.
    """
    suffixes = {file.path.suffix for file in files}
    if len(suffixes) > 1:
        raise DataError(
            f"rows of one prompt are scattered over files of several formats ({', '.join(sorted(suffixes))})",
            hint="Write all files in one format.",
        )
    (suffix,) = suffixes
    if not (folder / DONE_NAME).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ranks = _Ranks(layout)
        if suffix == ".parquet":
            _regroup_parquet(files, ranks, scorers, folder)
        else:
            _regroup_lines(files, ranks, folder)
        sync_tree(folder)
        write_json(folder / DONE_NAME, {"rows": layout.num_rows})
    columns = files[0].columns if suffix == ".jsonl" else {}
    return [RowFile(path, columns) for path in sorted(folder.glob(f"*{suffix}"))]


class _Ranks:
    """The number of every prompt, by the hash of its id, and the partition of every number."""

    def __init__(self, layout: Layout) -> None:
        import numpy as np

        self._hashes, first = np.unique(layout.hashes, return_index=True)
        self._ranks = np.empty(len(first), np.int64)
        self._ranks[np.argsort(first)] = np.arange(len(first))
        self.num_partitions = min(MAX_PARTITIONS, -(-layout.num_rows // PARTITION_ROWS))
        self._prompts_each = -(-len(first) // self.num_partitions)

    def of(self, hashes: Sequence[int]) -> Any:
        import numpy as np

        return self._ranks[np.searchsorted(self._hashes, np.asarray(hashes, dtype=np.uint64))]

    def partitions(self, ranks: Any) -> Any:
        return ranks // self._prompts_each


def _whole(file: RowFile) -> Piece:
    reader = open_file(file)
    if isinstance(reader, JsonlReader):
        return Piece(file, 0, file.path.stat().st_size, 0)
    return Piece(file, 0, reader.size()[0], 0)


def _regroup_parquet(files: Sequence[RowFile], ranks: _Ranks, scorers: Sequence[str], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [folder / f"part-{number:05d}.arrow" for number in range(ranks.num_partitions)]
    with ExitStack() as stack:
        sinks: list[Any] = []
        for batch, rank in _ranked_batches(files, ranks, scorers):
            if not sinks:
                sinks = [stack.enter_context(pa.ipc.new_stream(path, batch.schema)) for path in paths]
            for number, rows in _by_partition(ranks.partitions(rank)):
                sinks[number].write_batch(batch.take(pa.array(rows)))
    for path in paths if sinks else ():
        with pa.ipc.open_stream(path) as stream:
            table = stream.read_all()
        order = table["rank"].to_numpy().argsort(kind="stable")
        table = table.drop_columns("rank").take(pa.array(order))
        pq.write_table(table, path.with_suffix(".parquet"), row_group_size=PARTITION_ROWS, compression="snappy")
        path.unlink()


def _ranked_batches(files: Sequence[RowFile], ranks: _Ranks, scorers: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    """Record batches with the number of each row's prompt as the column `rank`, and the numbers."""
    import numpy as np
    import pyarrow as pa

    from align.selection.columns.parquet import ParquetReader, run_starts

    schema: Any = None
    for file in files:
        for batch in ParquetReader(file).table_rows(_whole(file), scorers):
            ids = batch["prompt_id"]
            starts = run_starts(ids)
            of_run = ranks.of([hash_of(prompt_id) for prompt_id in ids.take(starts).to_pylist()])
            rank = np.repeat(of_run, np.diff(starts.to_numpy(), append=len(batch)))
            batch = batch.append_column("rank", pa.array(rank))
            schema = schema or batch.schema
            if batch.schema != schema:
                raise DataError(
                    f"{file.path}: has other columns than {files[0].path}, and rows of one prompt are in both",
                    hint="Give candidate_index, finish_reason and the form of prompt alike in all files.",
                )
            yield batch, rank


def _by_partition(partitions: Any) -> Iterator[tuple[int, Any]]:
    """Partition and rows, in their order, for every partition that has any."""
    import numpy as np

    order = np.argsort(partitions, kind="stable")
    numbers, starts = np.unique(partitions[order], return_index=True)
    yield from zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)


def _regroup_lines(files: Sequence[RowFile], ranks: _Ranks, folder: Path) -> None:
    paths = [folder / f"part-{number:05d}.lines" for number in range(ranks.num_partitions)]
    with ExitStack() as stack:
        sinks = [stack.enter_context(path.open("wb")) for path in paths]
        for file in files:
            for prompt_id, line in JsonlReader(file).lines():
                (rank,) = ranks.of([hash_of(prompt_id)]).tolist()
                sinks[ranks.partitions(rank)].write(b"%d %s\n" % (rank, line.rstrip(b"\r\n")))
    for path in paths:
        with path.open("rb") as stream:
            numbered = [line.split(b" ", 1) for line in stream]
        numbered.sort(key=lambda entry: int(entry[0]))
        with path.with_suffix(".jsonl").open("wb") as sink:
            sink.writelines(line for _, line in numbered)
        path.unlink()
