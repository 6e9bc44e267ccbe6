"""The interface of readers of candidate files."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from align.errors import DataError
from align.selection.candidate import PromptCandidates
from align.store.artifact import Artifact

SCORE_PREFIX = "scores."
SCORE_FORMS = "scores (a number by name), scores.NAME, or score"


@dataclass(frozen=True)
class RowFile:
    """A file of scored candidates, with the columns whose names differ from our fields."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)

    def column(self, name: str) -> str:
        return self.columns.get(name, name)

    def has_scores(self, names: Container[str]) -> bool:
        """Whether one of a file's columns is a score by the mapping of names."""
        return any(column in names for field, column in self.columns.items() if field.startswith("score"))

    def wrong(self, row: int, problem: str) -> DataError:
        """The error of one row, by its number among the file's rows (its line in JSON Lines), from 1."""
        return DataError(
            f"{self.path}:{row}: {problem}", hint="Correct the row, or remove it; `align docs pairs` lists the columns."
        )


def files_of(artifact: Artifact) -> list[RowFile]:
    """The files of scored candidates that an artifact consists of."""
    return [RowFile(path, artifact.manifest.config.get("columns", {})) for path in artifact.row_paths]


class FileRange(NamedTuple):
    """A part of a file: from one position to before another. Positions are rows in Parquet and bytes in JSON Lines."""

    file: RowFile
    start: int
    stop: int
    row: int
    """Rows of the file before `start`."""


class PromptStart(NamedTuple):
    """Where a prompt begins: a row whose prompt differs from the row before, or the first row of a file or row group."""

    prompt_id: str | None
    """None after the last row."""
    position: int
    row: int
    """Rows of the file before it."""
    may_cut: bool = True
    """Whether reading can begin here without reading much before it."""


class Reader(Protocol):
    """Reads one file."""

    def check(self) -> None:
        """A quick check that the file can be read and has what every selection needs.

        Raises:
            DataError: if not.
        """

    def runs(self) -> Iterator[PromptStart]:
        """Where prompts begin, read from the prompt ids alone; the last item is the end of the file."""

    def parts(self, piece: FileRange, scorers: Sequence[str]) -> Iterator[PromptCandidates]:
        """The rows of a piece; rows of one prompt that follow each other may come in several parts.

        Raises:
            DataError: if a column is missing or of the wrong type, or a value is wrong. StageError: if a score is missing.
        """
