"""Artifacts: the result of a stage or an input, with the manifest that proves it complete.

<store>/<type>-<fingerprint>/
    …files…
    manifest.json     written last: no manifest, not done
    work/             unfinished shards and checkpoints; gone once the manifest is there
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from align.config.inputs import MANIFEST_NAME
from align.errors import EnvironmentProblem
from align.records import place_of
from align.rows import kind_of
from align.store.atomic import atomic_writer, fsync_folder, sync_tree
from align.store.fingerprint import HASHES_NAME, FileHashes
from align.store.seal import WORK_NAME, BrokenSeal, read_sealed, write_sealed
from align.system_errors import explained, refuse_unreadable

if TYPE_CHECKING:
    from align.store.row_file import RowFile  # numpy, which plans do not need

MANIFEST_SCHEMA_VERSION = 2
"""Raised whenever an older manifest does not say what a newer one does. 2: sealed."""
STORE_NAME = ".store"
ROWS_NAME = "rows.jsonl"
DROPS_NAME = "drops.jsonl"
METRICS_NAME = "metrics.jsonl"
MODEL_FOLDER = "model"
EPOCHS_NAME = "epochs"
"""Folder with the models of each epoch."""
INPUT_STAGE = "input"
"""The stage in the manifest of an artifact that no stage of align made."""
SFT_STAGE = "sft"

RecordT = TypeVar("RecordT", bound=BaseModel)


class FileEntry(BaseModel):
    """Size and hash of one file of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, what it was made from, by which versions, and the hash of each of its files."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    schema_version: int = MANIFEST_SCHEMA_VERSION
    kind: str
    """Kind of the artifact: model, preferences, …"""
    stage: str
    """Type of the stage that made it, or `input`."""
    stage_version: int
    """Version of that stage's code."""
    fingerprint: str
    """Names the result by everything it depends on."""
    config: dict[str, Any]
    """Resolved configuration."""
    inputs: dict[str, str]
    """Fingerprint of every input, by the name it had."""
    input_sources: dict[str, str] = Field(default_factory=dict)
    """Where the inputs that came from outside were read: file, folder, or hub id with its commit, by name."""
    seed: int | None
    """Seed of the run."""
    source: str | None = None
    """For inputs: the file, folder or hub id (with commit) it was read from."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Libraries and engines really used."""
    rows_in: int | None = None
    rows_out: int | None = None
    dropped: dict[str, int] = Field(default_factory=dict)
    """Dropped rows, by reason."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    """Wall time of the work, over all interrupted attempts, with the hashing and syncing of the result."""
    start_seconds: float = 0.0
    """Wall time before the work: the start of its process, and imports that it waits for. Of the last attempt; 0: not known."""
    peak_memory_bytes: int = 0
    """The most memory that the process that made it had: on a GPU what torch had allocated there, else its resident set."""
    machine: dict[str, Any] = Field(default_factory=dict)
    """How the work was spread over devices: `processes` and `strategy` of a training; `engines`, `tensor_parallel` and `pool` of
    sampling, scoring and likelihoods. Empty: one process."""
    files: dict[str, FileEntry] = Field(default_factory=dict)
    """Every file, by its path inside the artifact."""
    seal: str = ""
    """Hash of all the above, made when the manifest is written; see `align.store.seal`."""

    @property
    def chosen_input(self) -> str | None:
        """Fingerprint of the model that a choice among models kept; None for anything else."""
        models, chosen = self.config.get("models"), self.metrics.get("selected")
        is_choice = isinstance(models, dict) and isinstance(chosen, str) and chosen in models
        return self.inputs.get(str(models[chosen])) if is_choice else None  # type: ignore[index]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk. `name` is what the recipe calls it."""

    name: str
    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def model_path(self) -> Path:
        """Folder of weights, configuration and tokenizer."""
        # Model inputs are used where they lie: no copy of gigabytes, hence no `model` folder.
        return self.path if self.manifest.stage == INPUT_STAGE else self.path / MODEL_FOLDER

    @property
    def row_paths(self) -> list[Path]:
        """The files that hold the rows: one for a stage or a copied input; for an input used in place, its own files."""
        if (self.path / ROWS_NAME).is_file() or self.manifest.stage != INPUT_STAGE:
            return [self.path / ROWS_NAME]
        return [self.path / name for name in self.manifest.files]

    def rows(self, record_type: type[RecordT]) -> list[RecordT]:
        """All rows, in file order. `record_type` must be the type of this artifact's kind."""
        self._check_kind(record_type)
        return list(read_rows(self.path / ROWS_NAME, record_type))

    def row_file(self, record_type: type[RecordT]) -> RowFile[RecordT]:
        """The same rows, each read when it is asked for."""
        from align.store.row_file import RowFile

        self._check_kind(record_type)
        return RowFile(self.path / ROWS_NAME, record_type)

    def _check_kind(self, record_type: type[BaseModel]) -> None:
        if kind_of(record_type).name != self.kind:
            raise TypeError(f"{self.name} holds {self.kind}, not rows of {record_type.__name__}")

    def where(self, line: int | None) -> str:
        """A row's origin, for messages; see `place_of`."""
        source = self.manifest.source or self.name
        return source if line is None else place_of(source, line)


def read_rows(path: Path, record_type: type[RecordT]) -> Iterator[RecordT]:
    """Rows of a file that `write_rows` wrote."""
    with path.open("rb") as stream:
        for line in stream:
            yield record_type.model_validate_json(line)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write records as JSON Lines, atomically, each as it comes."""
    with atomic_writer(path) as stream:
        for row in rows:
            stream.write((row.model_dump_json() + "\n").encode())


EntryState = Literal["done", "missing", "damaged"]


def every_file(_: str) -> bool:
    """Every file of an entry, by its path inside."""
    return True


@dataclass
class Entry:
    """The folder of one result in the store, finished or not."""

    path: Path
    is_named: bool = True
    """Whether its folder is called `<stage>-<fingerprint>`, as in a store."""

    @classmethod
    def given(cls, path: Path) -> Entry:
        """The entry of a folder that a user named: a copy of a result outside a store may have any name."""
        path = path.resolve()
        return cls(path, is_named=path.parent.name == STORE_NAME)

    @property
    def work(self) -> Path:
        return self.path / WORK_NAME

    @property
    def lock_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    @property
    def known_hashes(self) -> FileHashes:
        """What its store remembers, read from the disk now."""
        return FileHashes(self.path.with_name(HASHES_NAME))

    def read_manifest(self) -> Manifest | None:
        """The manifest, or None when there is none, it cannot be read, is not as it was written, or is that of another result."""
        try:
            return self._sealed_manifest()
        except (BrokenSeal, OSError):
            return None

    def _sealed_manifest(self) -> Manifest:
        content = read_sealed(self.path / MANIFEST_NAME)
        if (version := content.get("schema_version")) != MANIFEST_SCHEMA_VERSION:
            other = f"has the form {version} of another version of align; this one reads {MANIFEST_SCHEMA_VERSION}"
            raise BrokenSeal(other)
        try:
            manifest = Manifest.model_validate(content)
        except ValidationError as error:
            raise BrokenSeal("cannot be read") from error
        name = f"{manifest.stage}-{manifest.fingerprint}"
        if self.is_named and (own := self.path.resolve().name) != name:
            raise BrokenSeal(f"is that of {name}, not of {own}")
        return manifest

    def check(self, hashes: FileHashes, reads: Callable[[str], bool] = every_file) -> tuple[EntryState, str]:
        """Whether the entry is complete, has nothing else in it and is undamaged; if not, also the reason.

        Args:
            hashes: files that it knows are not read.
            reads: whether the content of a file counts, by its path inside. All must be there, in their size.
        Raises:
            OSError: if this process cannot read a file that counts, also where its hash is known.
        """
        try:
            manifest = self._sealed_manifest()
        except FileNotFoundError:
            return "missing", ""
        except BrokenSeal as problem:
            return "damaged", f"{MANIFEST_NAME} {problem}"
        found = set(self._files())
        for name, entry in manifest.files.items():
            path = self.path / name
            if name not in found or not path.is_file():
                return "damaged", f"{name} is missing"
            # The size costs nothing; a truncated file of gigabytes is found before it is hashed.
            if path.stat().st_size != entry.size_bytes:
                return "damaged", f"{name} has {path.stat().st_size} bytes, not {entry.size_bytes}"
            if not reads(name):
                continue
            refuse_unreadable(path)
            if (digest := hashes.of(path)) != entry.sha256:
                return "damaged", f"{name} does not have the content it was written with{_digests(digest, entry.sha256)}"
        if others := sorted(found - manifest.files.keys()):
            return "damaged", f"{others[0]} is not part of it{_and_more(others)}"
        return "done", ""

    def verify(self, reads: Callable[[str], bool] = every_file) -> tuple[EntryState, str]:
        """As `check`, but what `reads` says is read now, whatever is remembered; what is found replaces that."""
        manifest, hashes = self.read_manifest(), self.known_hashes
        hashes.read([self.path / name for name in self.listed_files(manifest) if reads(name)] if manifest else [], again=True)
        found = self.check(hashes, reads)
        if self.is_named:  # else it is in no store
            hashes.save()
        return found

    def listed_files(self, manifest: Manifest) -> list[str]:
        """The files that are there and in the manifest, whose names may be any text: paths inside."""
        return [name for name in self._files() if name in manifest.files]

    def _files(self) -> Iterator[str]:
        """Paths inside of everything but folders, the manifest and the work."""

        def fail(error: OSError) -> None:
            raise error  # else a folder that cannot be read would be an empty one

        for parent, folders, names in os.walk(self.path, onerror=fail):
            inside = os.path.relpath(parent, self.path)
            if inside == ".":
                folders[:] = [name for name in folders if name != WORK_NAME]
                names = [name for name in names if name != MANIFEST_NAME]
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            for name in (*names, *links):
                yield os.path.normpath(os.path.join(inside, name))

    def quarantine(self) -> Path:
        """Move a damaged entry aside, so that nothing uses it and the user can look at it."""
        # With the time in its name, an entry that is damaged twice does not replace its first quarantined copy.
        target = self.path.with_name(f"quarantine-{self.path.name}-{time.time_ns()}")
        os.replace(self.path, target)
        fsync_folder(self.path.parent)
        return target

    def begin(self) -> None:
        """Prepare the entry for work: keep its work folder, remove half-written outputs."""
        self.work.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if path.name == WORK_NAME:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def commit(self, manifest: Manifest, *, seconds: Callable[[], float] | None = None) -> Manifest:
        """Hash every output, write the manifest last, then remove the work folder.

        The hashes are remembered in the store, so that no later plan or stage reads the files for them.

        Args:
            seconds: asked for the manifest's `seconds` when all files are hashed, which takes minutes for large models.
        """
        names, hashes = sorted(self._files()), self.known_hashes
        paths = [self.path / name for name in names]
        self._forbid_writing(paths)
        hashes.read(paths)
        files = {
            name: FileEntry(size_bytes=path.stat().st_size, sha256=hashes.of(path))
            for name, path in zip(names, paths, strict=True)
        }
        # Single files come from `atomic_writer`, which syncs them; those in folders come from libraries, which do not.
        for child in self.path.iterdir():
            if child.is_dir() and child.name != WORK_NAME:
                sync_tree(child)
        known = {} if seconds is None else {"seconds": round(seconds(), 3)}
        manifest = manifest.model_copy(update={"files": files, **known})
        # A kill before this line leaves an unfinished entry, whose work folder is still there for the next run.
        write_sealed(self.path / MANIFEST_NAME, json.loads(manifest.model_dump_json(exclude={"seal"})))
        self._forbid_writing([self.path / MANIFEST_NAME])
        # The entry is complete already: leftovers here cost disk space only, so they are no error.
        with hashes.touching(paths):  # the last epoch of a training is one file with its copy in the work folder
            shutil.rmtree(self.work, ignore_errors=True)
        hashes.save()
        return manifest

    def _forbid_writing(self, paths: Iterable[Path]) -> None:
        """Make files read-only, for whoever may read their folder: libraries keep weights to their owner.

        Those that have names outside this entry stay as they are: a user's own, or of another result.
        """
        readers = self.path.stat().st_mode & _READABLE
        inside = Counter(os.lstat(os.path.join(parent, name)).st_ino for parent, _, names in os.walk(self.path) for name in names)
        for path in paths:
            status = path.stat()
            mode = (stat.S_IMODE(status.st_mode) | readers) & ~_WRITABLE
            if status.st_nlink == inside[status.st_ino] and stat.S_IMODE(status.st_mode) != mode:
                with contextlib.suppress(OSError):  # a file system without permissions
                    path.chmod(mode)


_READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def _digests(found: str, expected: str) -> str:
    return f" (sha256 {found[:12]}…, not {expected[:12]}…)"


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


class Store:
    """The folder that every run of a project shares."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with explained(root):
            root.mkdir(parents=True, exist_ok=True)
        self.hashes = FileHashes(root / HASHES_NAME)

    def entry(self, stage_type: str, fingerprint: str) -> Entry:
        return Entry(self.root / f"{stage_type}-{fingerprint}")

    def load(self, name: str, entry: Entry) -> Artifact:
        """The finished artifact in `entry`; it must have been checked before."""
        manifest = entry.read_manifest()
        if manifest is None:
            raise EnvironmentProblem(f"{entry.path}: the result was removed while it was needed", hint="Run the command again.")
        return Artifact(name, entry.path, manifest)
