"""How candidate files are cut into tasks: at prompts, and by the rows alone, so that who works on them changes nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from align.selection.columns.chunk import Piece, RowFile
from align.selection.columns.open import open_file

TASK_ROWS = 1 << 16
"""Rows of a task at least, but for the last: what an interruption can cost a process."""
Task = tuple[Piece, ...]


@dataclass
class Layout:
    """What one pass over the prompt ids tells of the files."""

    tasks: list[Task]
    num_rows: int
    hashes: Any = field(repr=False)
    """64-bit hash of the prompt id of every run: rows of one prompt that follow each other."""

    @property
    def scattered(self) -> bool:
        """Whether rows of some prompt do not follow each other. Two ids with one hash look like that too; it costs time only."""
        import numpy as np

        return len(np.unique(self.hashes)) < len(self.hashes)


def hash_of(prompt_id: str) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(prompt_id.encode("utf-8", "surrogatepass"))


def lay_out(files: Sequence[RowFile], *, task_rows: int = TASK_ROWS) -> Layout:
    """Read the prompt ids of all files and cut the rows into tasks, each beginning with a new prompt.

    Raises:
        DataError: if a file cannot be read or a prompt id is missing.
    """
    import numpy as np

    hashes = array("Q")
    tasks: list[Task] = []
    pieces: list[Piece] = []
    last_id: str | None = None
    rows_before = task_began = 0
    for file in files:
        reader = open_file(file)
        start, start_row, may_cut = 0, 0, False
        for run in reader.runs():
            may_cut |= run.may_cut
            if run.prompt_id == last_id:
                continue
            last_id = run.prompt_id
            hashes.append(hash_of(run.prompt_id))
            row = rows_before + run.row
            if may_cut and row - task_began >= task_rows:
                tasks.append((*pieces, *_piece(file, start, run.position, start_row)))
                pieces, start, start_row, task_began = [], run.position, run.row, row
            may_cut = False
        stop, rows = reader.size()
        pieces.extend(_piece(file, start, stop, start_row))
        rows_before += rows
    if pieces:
        tasks.append(tuple(pieces))
    return Layout(tasks, rows_before, np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, np.uint64))


def _piece(file: RowFile, start: int, stop: int, row: int) -> list[Piece]:
    return [Piece(file, start, stop, row)] if stop > start else []
