"""Where a path of a recipe leads, and what to do about one that leads nowhere."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from align.config.names import looks_like_hub_id, nearest

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".gz", ".parquet", ".arrow")
HUB_ADDRESS = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?:datasets/)?(?P<id>[\w.-]+/[\w.-]+)")
VARIABLE = re.compile(r"\$\{?\w+\}?|%\w+%|\{\{.*\}\}")
SEARCHED = 2_000
"""Files that are looked at for one of the same name."""


def locate(written: str, folder: Path) -> Path:
    """A path as a recipe has it, which starts at the recipe's folder, from where the command runs.

    `mine/../rows.jsonl` is rows.jsonl, unless `mine` is a link.
    """
    path = folder / Path(written).expanduser()
    plain = Path(os.path.normpath(path))
    try:
        return plain if plain.parent.samefile(path.parent) else path
    except OSError:
        return path


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; there is none of a name that is too long for any."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def is_written_as_path(text: str) -> bool:
    """Whether a text that should be an id on the hub says that it is a path."""
    return text.startswith((".", "/", "~", "$")) or "\\" in text or text.endswith(DATA_SUFFIXES) or text.count("/") > 1


def hub_id_in(text: str) -> str | None:
    """The id on the hub that a text is, or is an address of."""
    address = HUB_ADDRESS.match(text)
    return address["id"] if address else text if looks_like_hub_id(text) and not text.endswith(DATA_SUFFIXES) else None


def advice_on_missing(written: str, folder: Path, *, hub: str = "") -> str:
    """What was probably meant by a path that does not exist, as the end of a sentence; may be empty.

    Args:
        written: the path.
        folder: where it starts.
        hub: what to write for an id on the hub, with {} for the id; empty where there is no such way.
    """
    with contextlib.suppress(OSError, ValueError):
        return f"; it is a link to {os.readlink(folder / Path(written).expanduser())}, which leads nowhere"
    if variable := VARIABLE.search(written):
        home = "~" if variable[0] in ("$HOME", "${HOME}", "%USERPROFILE%", "%HOME%") else "the folder"
        return f"; variables are not expanded: write {written.replace(variable[0], home) if home == '~' else home} instead"
    parts = Path(written).parts
    hub_id = hub_id_in(written) if hub else None
    if hub_id and (hub_id != written or not exists(folder / parts[0])):
        return f"; did you mean '{hub.format(hub_id)}'?"
    if "://" in written:
        local = written.removeprefix("file://")
        return f"; did you mean '{local}'?" if local != written else "; paths are local: fetch it first"
    for other in (written.strip(), written.replace("\\", "/"), Path(written).name if Path(written).is_absolute() else written):
        if other != written and exists(folder / Path(other).expanduser()):
            return f"; did you mean '{other}'?"
    if folder.resolve() != Path.cwd() and exists(Path(written)):
        return f"; paths start at the recipe: did you mean '{os.path.relpath(written, folder)}'?"
    near = _misspelt(folder, Path(written).expanduser()) or _elsewhere(folder, Path(written).name)
    return f"; did you mean '{near}'?" if near else ""


def _misspelt(folder: Path, written: Path) -> str | None:
    """The existing path that differs from the written one in the spelling of its parts."""
    place, parts = (Path(written.anchor), written.parts[1:]) if written.is_absolute() else (folder, written.parts)
    found = Path(written.anchor)
    for part in parts:
        if part != ".." and not exists(place / part):
            near = nearest(part, (entry.name for entry in _entries(place)))
            if near is None:
                return None
            part = near
        place, found = place / part, found / part
    return str(found)


def _elsewhere(folder: Path, name: str) -> str | None:
    """A path of the same name below the folder."""
    for base, folders, files in islice(os.walk(folder), SEARCHED):
        folders[:] = [] if base.count(os.sep) - str(folder).count(os.sep) > 1 else sorted(folders)
        if name in files or name in folders:
            return os.path.relpath(Path(base, name), folder)
    return None


def _entries(place: Path) -> Iterable[Path]:
    try:
        return list(islice(place.iterdir(), SEARCHED))
    except OSError:
        return ()
