"""Cuts candidate files into tasks. The cuts depend on the rows only, so that the number of processes changes no result."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
from xxhash import xxh3_64_intdigest

from align.selection.candidate import PromptCandidates
from align.selection.files.open import open_file
from align.selection.files.reader import FileRange, RowFile

TASK_ROWS = 1 << 16
"""Least rows of a task, except the last: the work that a process can lose in an interruption."""


class Task(Protocol):
    """Rows whose selection is one piece of work. It is sent to other processes, so it holds plain values only."""

    def parts(self, scorers: Sequence[str]) -> Iterator[PromptCandidates]:
        """The rows. Rows of one prompt follow each other, perhaps in several parts."""


class Pieces(NamedTuple):
    """Parts of files that follow each other."""

    pieces: tuple[FileRange, ...]

    def parts(self, scorers: Sequence[str]) -> Iterator[PromptCandidates]:
        return chain.from_iterable(open_file(piece.file).parts(piece, scorers) for piece in self.pieces)


@dataclass(frozen=True)
class Layout:
    """The result of one pass over the prompt ids."""

    tasks: list[Pieces]
    num_rows: int
    hashes: Any
    """uint64 [runs]: hash of the prompt id of every run, rows of one prompt that follow each other."""

    @property
    def scattered(self) -> bool:
        """Whether the rows of some prompt are apart. Two ids with the same hash look so too, which only costs time."""
        return len(np.unique(self.hashes)) < len(self.hashes)


def hash_of(prompt_id: str) -> int:
    """64 bits of a prompt id, which may hold half of a surrogate pair."""
    return xxh3_64_intdigest(prompt_id.encode("utf-8", "surrogatepass"))


def lay_out(files: Sequence[RowFile], *, task_rows: int = TASK_ROWS) -> Layout:
    """Read the prompt ids of all files and cut the rows into tasks, each beginning with a new prompt.

    Raises:
        DataError: if a file cannot be read or a prompt id is missing.
    """
    # Eight bytes per prompt, however long its id is; the ids themselves are not kept.
    hashes = array("Q")
    tasks: list[Pieces] = []
    pieces: list[FileRange] = []
    last_id: str | None = None
    rows_before = task_began = 0
    for file in files:
        start, start_row, may_cut = 0, 0, False
        for run in open_file(file).runs():
            row, ends = rows_before + run.row, run.prompt_id is None
            # A row group may begin inside a prompt. The next prompt begins soon after it, so a cut there costs little, too.
            may_cut |= run.may_cut
            if run.prompt_id == last_id and not ends:
                continue
            cuts = may_cut and row - task_began >= task_rows and not ends
            if (ends or cuts) and run.position > start:
                pieces.append(FileRange(file, start, run.position, start_row))
            if cuts:
                tasks.append(Pieces(tuple(pieces)))
                pieces, start, start_row, task_began = [], run.position, run.row, row
            if run.prompt_id is None:
                rows_before = row
                break
            last_id, may_cut = run.prompt_id, False
            hashes.append(hash_of(last_id))
    if pieces:
        tasks.append(Pieces(tuple(pieces)))
    return Layout(tasks, rows_before, np.array(hashes, dtype=np.uint64))
