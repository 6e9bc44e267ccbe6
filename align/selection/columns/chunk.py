"""What readers of candidate files give, and how prompts are put together from it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from align.errors import DataError
from align.selection.candidate import PromptCandidates, joined
from align.store.artifact import Artifact

SCORE_PREFIX = "scores."
SCORE_FORMS = "scores (a number by name), scores.NAME, or score"
CHUNK_ROWS = 8192


@dataclass(frozen=True)
class RowFile:
    """A file of scored candidates, and where its columns have other names than our fields."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)

    def column(self, name: str) -> str:
        return self.columns.get(name, name)

    def has_scores(self, names: Container[str]) -> bool:
        """Whether one of a file's columns is a score by the mapping of names."""
        return any(column in names for field, column in self.columns.items() if field.startswith("score"))

    def wrong(self, row: int, problem: str) -> DataError:
        """The error of one row, by its number among the file's rows (its line in JSON Lines), from 1."""
        return DataError(f"{self.path}:{row}: {problem}", hint="Mend the row, or remove it; docs/pairs.md lists the columns.")


def files_of(artifact: Artifact) -> list[RowFile]:
    """The files of scored candidates that an artifact consists of."""
    return [RowFile(path, artifact.manifest.config.get("columns", {})) for path in artifact.row_paths]


class Piece(NamedTuple):
    """A part of a file: from one position to before another. Positions are rows in Parquet and bytes in JSON Lines."""

    file: RowFile
    start: int
    stop: int
    row: int
    """Rows of the file before `start`."""


class Run(NamedTuple):
    """A row whose prompt is another than that of the row before, or the first row of a file or row group."""

    prompt_id: str
    position: int
    row: int
    """Rows of the file before it."""
    may_cut: bool
    """Whether reading can begin here without reading much that stands before it."""


class Chunk(NamedTuple):
    """Rows that follow each other in a file, in columns. A run is rows of one prompt that follow each other."""

    starts: list[int]
    """First row of every run, within the chunk."""
    prompt_ids: Sequence[str]
    """By run."""
    prompts: Sequence[Any]
    """By run: text, or messages as plain lists and mappings."""
    indices: list[int] | None
    """candidate_index by row; None where the file has none."""
    texts: list[str]
    truncated: list[bool]
    scores: list[list[float | None]]
    """By scorer, then by row."""


class Reader(Protocol):
    """Reads one file."""

    def check(self) -> None:
        """Whether it can be read and has what every selection needs, at a glance: DataError if not."""

    def runs(self) -> Iterator[Run]:
        """Where prompts begin, read from the prompt ids alone."""

    def size(self) -> tuple[int, int]:
        """The position behind the last row, and the number of rows; known once `runs` has been read to its end."""

    def chunks(self, piece: Piece, scorers: Sequence[str]) -> Iterator[Chunk]:
        """The rows of a piece."""


def prompts_in(chunks: Iterable[Chunk]) -> Iterator[PromptCandidates]:
    """Every prompt with its candidates; runs of one prompt at the border of two chunks are one.

    Raises:
        StageError: if a prompt has one candidate_index twice, or two different prompts share an id.
    """
    return (candidates.by_index() for candidates in joined(part for chunk in chunks for part in _parts_of(chunk)))


def _parts_of(chunk: Chunk) -> Iterator[PromptCandidates]:
    stops = [*chunk.starts[1:], len(chunk.texts)]
    for number, (start, stop) in enumerate(zip(chunk.starts, stops, strict=True)):
        yield PromptCandidates(
            chunk.prompt_ids[number],
            chunk.prompts[number],
            [] if chunk.indices is None else chunk.indices[start:stop],
            chunk.texts[start:stop],
            chunk.truncated[start:stop],
            [column[start:stop] for column in chunk.scores],
        )
