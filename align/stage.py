"""What a stage is, and what it is handed when it runs.

A stage is a file with a `Config`, a `VERSION` and a `run` function, and a line in `stages/registry.py` that names it. It never
imports another stage and finds its inputs through the context only, never by a guessed path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from align.config.form import Seed
from align.config.graph import GraphModel
from align.config.row_need import RowNeed
from align.runtime.context import RunContext
from align.store.artifact import Artifact
from align.store.fingerprint import HASHES_NAME, FileHashes

if TYPE_CHECKING:
    from align.store.kept import KeptResult


class StageConfig(GraphModel):
    """Fields common to every stage's configuration.

    `labels_matter` says that the names the references carry are part of the result, as the row names of the comparison are.
    """

    labels_matter: ClassVar[bool] = False
    carries: ClassVar[Mapping[str, str]] = {}
    """Field of the rows that the stage makes → its own field that names the rows from which the value is taken over."""

    seed: Seed | None = None
    """Seed of this stage; default: the recipe's."""

    def row_needs(self) -> Iterator[RowNeed]:
        """What it reads in the rows that it names, beyond what their kind requires; a plan looks for it first."""
        yield from ()


ConfigT = TypeVar("ConfigT", bound=StageConfig, covariant=True)


@dataclass
class StageOutcome:
    """What a stage reports about its result; it goes into the manifest."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """Numbers a reader wants to see, by name."""
    rows_in: int | None = None
    """Rows read."""
    rows_out: int | None = None
    """Rows written."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that left, by `drop_reason`."""
    versions: dict[str, str] = field(default_factory=dict)
    """Engines and libraries that decided the bytes, with the version really used."""
    machine: dict[str, Any] = field(default_factory=dict)
    """How the stage spread its work over devices, as in `Manifest.machine`."""


@dataclass(kw_only=True)
class StageContext(RunContext, Generic[ConfigT]):
    """Everything a running stage may use."""

    config: ConfigT
    artifacts: Mapping[str, Artifact]
    """Inputs by the name the configuration refers to them by, and everything they were made from, in the recipe's order."""
    output: Path
    """The stage's store entry: what is written here is committed when `run` returns."""
    store_root: Path
    """Folder of all entries; what several stages can use (reference log-probabilities) is kept there by its content."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe, for reports; it must not decide a number."""
    command: list[str] = field(default_factory=list)
    """What the user typed, for reports."""

    def kept(self, kind: str, version: int, decides: Mapping[str, Any], what: str, **known: Mapping[str, Any]) -> KeptResult:
        """A result that other stages can use too; `known` are `sources` and `settings` of it."""
        from align.store.kept import KeptResult

        return KeptResult(self.store_root, kind, version, decides, what, **known)

    @property
    def known_hashes(self) -> FileHashes:
        """What the store remembers of files, read from the disk now."""
        return FileHashes(self.store_root / HASHES_NAME)

    def artifact(self, reference: str) -> Artifact:
        """The artifact that a reference of the configuration names."""
        return self.artifacts[reference]
