"""Seals: JSON files that say whether they are as written, and what belongs to a result, a shard or a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from align.runtime.plain_file import read_small_file
from align.store.atomic import write_json
from align.store.fingerprint import FileHashes, sha256_of_json
from align.system_errors import says_nothing_of_the_file

SEAL = "seal"
"""Its field for the hash of the others."""
PLACE = "place"
WORK_NAME = "work"
"""Folder of an entry for unfinished shards and checkpoints."""


class BrokenSeal(ValueError):
    """What is wrong with a sealed file, in words that follow its name."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with a hash of its own content, atomically."""
    content = json.loads(json.dumps(content))  # as it will be read: keys that are numbers become text, which sorts otherwise
    write_json(path, {**content, SEAL: sha256_of_json(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, the seal included.

    Raises:
        BrokenSeal: if the file cannot be read or was changed since.
        FileNotFoundError: if there is none.
        OSError: if this process cannot read it, whatever it holds; see `align.system_errors`.
    """
    try:
        content = json.loads(read_small_file(path))
        found = sha256_of_json({key: value for key, value in content.items() if key != SEAL})
    except FileNotFoundError:
        raise
    except OSError as error:
        if says_nothing_of_the_file(error):
            raise
        raise BrokenSeal(f"cannot be read: it {error.strerror}") from error
    except (ValueError, RecursionError, AttributeError) as error:
        raise BrokenSeal("cannot be read: it is not the JSON that was written") from error
    if SEAL not in content:
        raise BrokenSeal("has no seal: an earlier version of align wrote it, or it was changed")
    if content[SEAL] != found:
        raise BrokenSeal("was changed after it was written")
    return content  # type: ignore[no-any-return]


def write_work(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for a later attempt at the same work, with a seal and its place."""
    write_sealed(path, {PLACE: place_of_work(path), **content})


def read_work(path: Path, *, on_damage: Callable[[str], None]) -> dict[str, Any] | None:
    """What `write_work` wrote at this place; None if there is no such file, or none that is whole.

    Args:
        on_damage: called with what is wrong with a file that is not whole.
    """
    try:
        content = read_sealed(path)
    except FileNotFoundError:
        return None
    except BrokenSeal as problem:
        on_damage(f"{path.name} {problem}; it is not used")
        return None
    if (place := content.get(PLACE)) != place_of_work(path):
        on_damage(f"{path.name} is that of {place}; it is not used")
        return None
    return {name: value for name, value in content.items() if name not in (SEAL, PLACE)}


def seal_folder(folder: Path, seal: Path, *, called: str | None = None) -> None:
    """Seal all files of a folder of unfinished work, which must be on the disk already.

    Args:
        seal: the seal's file; it may be in the folder.
        called: the name under which the folder is used, if it is renamed later.
    """
    place = place_of_work(folder if called is None else folder.with_name(called))
    write_sealed(seal, {PLACE: place, "files": _hashes(folder, seal)})


def folder_problem(folder: Path, seal: Path) -> str | None:
    """What is wrong with a folder that `seal_folder` sealed, or None when it is whole: these files, and no others."""
    try:
        sealed = read_sealed(seal)
    except FileNotFoundError:
        return "it was not finished"
    except BrokenSeal as problem:
        return f"{seal.name} {problem}"
    if (place := sealed.get(PLACE)) != place_of_work(folder):
        return f"{seal.name} is that of {place}"
    found, files = _hashes(folder, seal), sealed.get("files")
    if not isinstance(files, dict):
        return f"{seal.name} lists no files"
    for name, digest in files.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} does not have the content it was written with"
    others = sorted(found.keys() - files.keys())
    return f"{others[0]} is not part of it" if others else None


def _hashes(folder: Path, seal: Path) -> dict[str, str]:
    """sha256 of everything below a folder but its seal, by its path inside; empty for what is no file."""
    paths = sorted(path for path in folder.rglob("*") if path != seal and (path.is_symlink() or not path.is_dir()))
    hashes = FileHashes(None)
    hashes.read(paths)
    return {path.relative_to(folder).as_posix(): hashes.of(path) if path.is_file() else "" for path in paths}


def place_of_work(path: Path) -> str:
    """Where unfinished work belongs: name of the entry and path inside; outside the work of an entry, its name alone."""
    parts = path.absolute().parts
    work = max((index for index, part in enumerate(parts) if part == WORK_NAME), default=0)
    return "/".join(parts[work - 1 :]) if work > 1 else path.name
