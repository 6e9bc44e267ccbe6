"""What a store holds: what takes space, which runs still need it, whether it is undamaged, and what can go.

A run needs the entries of its last plan, finished or not, its inputs, and the base models of adapters among them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from align.config.inputs import MANIFEST_NAME
from align.errors import RecipeError
from align.models.files import BASE_NAME
from align.pipeline.plan import LINKS_NAME
from align.pipeline.run import INPUT_LINKS_NAME
from align.runtime.event_file import EVENTS_NAME
from align.runtime.events import RunPlanned, from_json
from align.runtime.plain_file import open_plain, read_small_file
from align.stages.registry import STAGES
from align.store.artifact import STORE_NAME, Entry
from align.store.atomic import fsync_folder
from align.store.fingerprint import HASHES_NAME, FileHashes
from align.store.lock import hold, is_held
from align.system_errors import refuse_unreadable

BLOCK_BYTES = 512
"""Unit of a file's `st_blocks`, whatever the file system's own is."""
QUARANTINE_PREFIX = "quarantine-"
PRUNED_PREFIX = ".pruned-"
"""Before the name of an entry while it is removed; what a kill leaves goes with the next prune."""

State = Literal["done", "damaged", "unfinished", "quarantined", "removed"]


@dataclass(frozen=True)
class StoreEntry:
    """One folder of a store."""

    path: Path
    state: State
    stage: str
    """Type of the stage that made it; its folder's name tells it of an unfinished one."""
    needed_by: tuple[str, ...]
    """Runs, by name."""
    blocks: dict[tuple[int, int], int] = field(repr=False)
    """Bytes on the disk by device and inode, so that a file with several names counts once."""
    links: dict[tuple[int, int], tuple[int, int]] = field(repr=False)
    """By device and inode: names that the file has inside this entry, and names in all."""

    @property
    def size_bytes(self) -> int:
        return sum(self.blocks.values())

    @property
    def shared_bytes(self) -> int:
        """Of files that have names outside this entry as well: removing the entry alone does not free them."""
        return sum(size for file, size in self.blocks.items() if self.links[file][0] < self.links[file][1])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.path.name,
            "path": str(self.path),
            "state": self.state,
            "stage": self.stage,
            "size_bytes": self.size_bytes,
            "shared_bytes": self.shared_bytes,
            "needed_by": list(self.needed_by),
        }


@dataclass(frozen=True)
class Inventory:
    """All entries of a store, the largest first."""

    root: Path
    entries: list[StoreEntry]
    running: tuple[str, ...]
    """Recipes that a process runs now."""

    @property
    def size_bytes(self) -> int:
        """On the disk; a file counts once however many names it has."""
        return sum({file: size for entry in self.entries for file, size in entry.blocks.items()}.values())

    @property
    def unneeded(self) -> list[StoreEntry]:
        return [entry for entry in self.entries if not entry.needed_by]


def take_inventory(out: Path) -> Inventory:
    """Look at the store of the runs in `out`. Reads no file of an entry but manifests and records of adapters.

    Raises:
        RecipeError: if there is no store.
    """
    root = out / STORE_NAME
    if not root.is_dir():
        raise RecipeError(
            f"{out}: holds no runs of align (there is no {STORE_NAME})", hint="Give the folder of the runs with --out."
        )
    # The folder of `align stage` is a run itself.
    runs = [out.resolve(), *(path for path in sorted(out.iterdir()) if path.is_dir() and path != root)]
    needs = {run.name: _needed_by_run(run, root) for run in runs}
    entries = []
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        needed_by = tuple(run for run, names in needs.items() if path.name in names)
        entries.append(_entry(path, needed_by))
    running = tuple(
        lock.stem.removeprefix("run-") for lock in sorted(root.glob("run-*.lock")) if not lock.is_dir() and is_held(lock)
    )
    return Inventory(root, sorted(entries, key=lambda entry: -entry.size_bytes), running)


def _entry(path: Path, needed_by: tuple[str, ...]) -> StoreEntry:
    blocks: dict[tuple[int, int], int] = {}
    inside: dict[tuple[int, int], tuple[int, int]] = {}
    for parent, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running stage writes and removes files
                status = os.lstat(os.path.join(parent, name))
                file = (status.st_dev, status.st_ino)
                blocks[file] = status.st_blocks * BLOCK_BYTES
                inside[file] = (inside.get(file, (0, 0))[0] + 1, status.st_nlink)
    refuse_unreadable(path / MANIFEST_NAME)  # it may be whole
    manifest = Entry(path).read_manifest()
    state: State = "done" if manifest else "damaged" if (path / MANIFEST_NAME).exists() else "unfinished"
    if path.name.startswith(PRUNED_PREFIX):
        state = "removed"
    elif path.name.startswith(QUARANTINE_PREFIX):
        state = "quarantined"
    stage = manifest.stage if manifest else path.name.removeprefix(PRUNED_PREFIX).removeprefix(QUARANTINE_PREFIX).split("-")[0]
    return StoreEntry(path, state, stage, needed_by, blocks, inside)


def _needed_by_run(run: Path, root: Path) -> set[str]:
    """Names of the entries that a run needs."""
    links = [*(run / LINKS_NAME).glob("*"), *(run / INPUT_LINKS_NAME).glob("*")]
    # An interrupted run has no link yet to the stage that it goes on with.
    planned = (f"{stage.stage_type}-{stage.fingerprint}" for stage in _last_plan(run / EVENTS_NAME))
    # Among these alone: events may be damaged, and name what no file can be called.
    there = {path.name for path in root.iterdir()}
    needed, waiting = set(), [*_names_inside(links, root), *planned]
    while waiting:
        if (name := waiting.pop()) in there and name not in needed:
            needed.add(name)
            waiting += _bases(root / name, root)
    return needed


def _names_inside(paths: Iterable[Path], root: Path) -> Iterator[str]:
    """The entry of the store that each path leads into; nothing for a path that leads elsewhere."""
    store = root.resolve()
    for path in paths:
        place = path.resolve()
        if place != store and place.is_relative_to(store):
            yield place.relative_to(store).parts[0]


def _last_plan(events: Path) -> Sequence[Any]:
    """Stages of the last plan in a run's events; nothing where there is none."""
    planned: Sequence[Any] = ()
    with contextlib.suppress(OSError), open_plain(events) as stream:
        for line in stream:
            # Most lines are progress, and need not be parsed.
            if b'"run_planned"' in line:
                with contextlib.suppress(ValueError):
                    event = from_json(line)
                    planned = event.stages if isinstance(event, RunPlanned) else planned
    return planned


def _bases(entry: Path, root: Path) -> list[str]:
    """Entries with the base models of the adapters in an entry."""
    places = []
    for record in entry.rglob(BASE_NAME):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            places.append((root / json.loads(read_small_file(record))["place"]).resolve())
    return list(_names_inside(places, root))


@dataclass(frozen=True)
class Pruned:
    """What a prune removed, or would."""

    removed: list[StoreEntry]
    kept: list[StoreEntry]
    """Needed by no run, but at work now."""
    freed_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "removed": [entry.to_json() for entry in self.removed],
            "in_use": [entry.to_json() for entry in self.kept],
            "freed_bytes": self.freed_bytes,
        }


def prune(out: Path, *, remove: bool) -> Pruned:
    """Remove every entry that no run needs; without `remove`, find out which that would be.

    An entry that a process works on is kept, and while a recipe runs, so are inputs and what several stages use, such as tokens.
    Each one gets another name before its files are removed: a kill leaves no half entry under a name that a run would look for.
    """
    inventory = take_inventory(out)
    hashes = FileHashes(inventory.root / HASHES_NAME)
    removed: list[StoreEntry] = []
    kept: list[StoreEntry] = []
    for entry in inventory.unneeded:
        if inventory.running and entry.state in ("done", "unfinished", "damaged") and entry.stage not in STAGES:
            # A run that still reads its inputs has linked none of them, and no plan names what several stages use.
            kept.append(entry)
            continue
        lock = Entry(entry.path).lock_path
        if entry.state in ("removed", "quarantined"):
            free = contextlib.nullcontext(True)  # nobody locks these
        elif remove:
            free = hold(lock, on_wait=lambda holder: None, give_up=lambda: True)  # type: ignore[assignment]
        else:
            free = contextlib.nullcontext(not is_held(lock))
        with free as is_free:
            (removed if is_free else kept).append(entry)
            if is_free and remove:
                # A file that has names elsewhere is unchanged there.
                with hashes.touching(hashes.names_of(entry.blocks)):
                    _remove(entry.path)
                lock.unlink(missing_ok=True)
    hashes.save()
    return Pruned(removed, kept, _freed(removed))


def _remove(path: Path) -> None:
    if not path.name.startswith(PRUNED_PREFIX):
        target = path.with_name(f"{PRUNED_PREFIX}{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)
        fsync_folder(path.parent)
        path = target
    shutil.rmtree(path)


def _freed(entries: Sequence[StoreEntry]) -> int:
    """Bytes of the files all of whose names go."""
    names: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for entry in entries:
        for file, (inside, in_all) in entry.links.items():
            names[file] = names.get(file, 0) + inside
            sizes[file] = (entry.blocks[file], in_all)
    return sum(size for file, (size, in_all) in sizes.items() if names[file] >= in_all)


@dataclass(frozen=True)
class Verified:
    """What was read again."""

    checked: list[str]
    damaged: dict[str, str]
    """What is wrong, by the name of the entry."""

    def to_json(self) -> dict[str, Any]:
        return {"checked": self.checked, "damaged": self.damaged}


def verify(out: Path, *, report: Callable[[str], None] = lambda name: None) -> Verified:
    """Read every file of every finished entry and compare its hash with the manifest.

    What is found replaces what the store remembers, so that the next plan finds the damage too, sets the entry aside and makes
    it again.

    Args:
        report: called with an entry's name before it is read.
    """
    inventory = take_inventory(out)
    hashes = FileHashes(inventory.root / HASHES_NAME)
    seen: set[tuple[int, int]] = set()
    result = Verified([], {})
    for entry in sorted(inventory.entries, key=lambda entry: entry.path.name):
        if entry.state not in ("done", "damaged"):
            continue
        report(entry.path.name)
        hashes.read(_unread(entry.path, seen), again=True)
        state, problem = Entry(entry.path).check(hashes)
        result.checked.append(entry.path.name)
        if state == "damaged":
            result.damaged[entry.path.name] = problem
    hashes.save()
    return result


def _unread(path: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files of an entry that no entry before it has; they are added to `seen`."""
    entry = Entry(path)
    manifest = entry.read_manifest()
    for file in (path / name for name in (entry.listed_files(manifest) if manifest else ())):
        if file.is_file():
            status = file.stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield file
