"""Finds the files of an input: one file, a glob, a folder, or the parts of a mixture. Reads none of them."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from align.config.inputs import DataInput, MixturePart
from align.config.names import LONGEST_NAME
from align.data.hub import fetch_dataset_rows
from align.data.reader import FORMATS, RawRow, file_format, read_raw, unknown_format
from align.errors import DataError, RecipeError
from align.rows import DataKind
from align.runtime.plain_file import other_kind, read_small_file
from align.system_errors import system_problem

MAX_SHOWN = 5
MAX_NAME = 255
"""Characters that are shown of a file's name, which may be none."""


@dataclass(frozen=True)
class HubRows:
    """One split of a dataset on the hub."""

    dataset: str
    split: str
    revision: str | None
    subset: str | None = None

    def shown(self, revision: str) -> str:
        """Its name in messages: `owner/name@main:train`, with `/subset` behind the name where one is named."""
        return f"{self.dataset}{f'/{self.subset}' if self.subset else ''}@{revision}:{self.split}"


@dataclass(frozen=True)
class SourceFile:
    """One file of an input, or one split of a hub dataset."""

    origin: Path | HubRows
    """Where its rows are read from."""
    shown: str
    """Its name in messages."""
    columns: Mapping[str, str]
    """align's field → column of this file, where the names differ."""
    part: str | None = None
    """Name of the mixture's part that it belongs to; None outside mixtures."""
    max_rows: int | None = None
    """Most rows of it and of the files before it, of the same part, together; None: all."""

    @property
    def format(self) -> str:
        """The ending that names the file's format, such as `.jsonl`; empty for rows from the hub."""
        return file_format(self.origin) if isinstance(self.origin, Path) else ""


@dataclass(frozen=True)
class Source:
    """All files of an input, in reading order."""

    files: tuple[SourceFile, ...]
    shown: str
    """Its name in messages."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight by part, as in the recipe; empty unless the input is a mixture."""


def find_source(spec: DataInput, locate: Callable[[str], Path]) -> Source:
    """The files of a data input.

    A path may be a file, a glob such as `shards/*.parquet` (sorted by name), a folder that `datasets.save_to_disk` wrote, or a
    folder whose data files have one format.

    Args:
        locate: turns a path written in the recipe into one that can be opened.
    Raises:
        RecipeError: if there is no such file, or it is not clear which files of a folder are meant.
        DataError: if the format of a file is unknown.
    """
    if spec.mixture is not None:
        files = [file for name, part in spec.mixture.items() for file in _files_of_part(spec, name, part, locate)]
        weights = {name: part.weight for name, part in spec.mixture.items()}
        return Source(tuple(files), "mixture of " + ", ".join(spec.mixture), weights)
    if spec.dataset is not None:
        hub = HubRows(spec.dataset, spec.split or "", spec.revision, spec.subset)
        return Source((SourceFile(hub, spec.dataset, spec.columns, max_rows=spec.max_rows),), spec.dataset)
    path = locate(spec.path or "")
    return Source(tuple(_files(path, spec.row_kind, spec, None)), str(path))


def read_file(file: SourceFile) -> Iterator[RawRow]:
    """Rows of one file of a source, at most its `max_rows`; see `read_raw`.

    Raises:
        DataError, EnvironmentProblem: see `read_raw` and `fetch_dataset_rows`.
    """
    return fetch_file(file)[1] if isinstance(file.origin, HubRows) else islice(read_raw(file.origin), file.max_rows)


def fetch_file(file: SourceFile) -> tuple[str | None, Iterator[RawRow]]:
    """The commit and the rows of a file that is on the hub; see `fetch_dataset_rows`."""
    hub = file.origin
    assert isinstance(hub, HubRows)
    return fetch_dataset_rows(hub.dataset, hub.split, hub.revision, hub.subset, file.max_rows)


def read_prefix(source: Source, most: int) -> Iterator[list[RawRow]]:
    """The first rows of each file, in order. Behind a file of a limited part that goes on, its other files give none.

    Args:
        most: rows of a file.
    Raises:
        DataError, EnvironmentProblem: see `read_file`.
    """
    left = dict[str | None, int]()
    for file in source.files:
        limit = most if file.max_rows is None else min(most, left.get(file.part, file.max_rows))
        rows = list(islice(read_file(file), limit)) if limit else []
        if file.max_rows is not None:
            # How many rows a longer file has is not known here, so nor is whether the limit leaves any to the next.
            left[file.part] = 0 if len(rows) == most else left.get(file.part, file.max_rows) - len(rows)
        yield rows


def _files_of_part(spec: DataInput, name: str, part: MixturePart, locate: Callable[[str], Path]) -> list[SourceFile]:
    if part.dataset is not None and part.split is not None:
        hub = HubRows(part.dataset, part.split, part.revision, part.subset)
        return [SourceFile(hub, hub.shown(part.revision or "newest"), part.columns, name, part.max_rows)]
    return _files(locate(part.path or ""), spec.row_kind, part, name)


def _files(path: Path, kind: DataKind[Any], place: DataInput | MixturePart, part: str | None) -> list[SourceFile]:
    """The files that a path stands for."""
    return [
        SourceFile(file, str(file), place.columns or _default_columns(kind, file), part, place.max_rows)
        for file in find_files(path)
    ]


def _default_columns(kind: DataKind[Any], path: Path) -> Mapping[str, str]:
    """Lines of a .txt file are prompts in an input of prompts."""
    is_alone = kind.has_prompt and not kind.completions
    return {"prompt": "text"} if is_alone and file_format(path) == ".txt" else {}


def find_files(path: Path) -> list[Path]:
    """The files that a path stands for: see `find_source`."""
    if path.is_dir():
        return _in_folder(path)
    # A file whose name holds a glob character is that file.
    if path.exists() or not glob.has_magic(str(path)):
        _require_file(path)
        _require_format(path)
        return [path]
    # glob gives the order of the file system, which differs between machines; the order of rows must not.
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True) if Path(one).is_file())
    if not found:
        raise RecipeError(f"{path}: no file fits", hint=_what_is_there(_existing_parent(path)))
    for one in found:
        _require_format(one)
    return found


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.exists():
        raise RecipeError(f"{path}: is {other_kind(path)}, not a file", hint="Save what it gives, and name that file.")
    if path.is_symlink():
        raise DataError(f"{path}: is a link to {os.readlink(path)}, which leads nowhere", hint="Name the file itself.")
    close = get_close_matches(path.name[:LONGEST_NAME], _names(path.parent), n=1) if path.parent.is_dir() else []
    hint = f"Did you mean {path.parent / close[0]}?" if close else _what_is_there(_existing_parent(path))
    raise DataError(f"{path}: there is no such file", hint=hint)


def _require_format(path: Path) -> None:
    if file_format(path) not in FORMATS:
        raise unknown_format(path)


def _in_folder(folder: Path) -> list[Path]:
    """The data files of a folder."""
    # `DatasetDict.save_to_disk` wrote it: one subfolder per split.
    if (folder / "dataset_dict.json").is_file():
        splits = [one.name for one in sorted(folder.iterdir()) if (one / "state.json").is_file()]
        raise RecipeError(
            f"{folder}: holds several splits: {', '.join(splits) or 'none that is whole'}",
            hint=f"Name one of them: path: {folder / splits[0]}" if splits else "Write the folder again.",
        )
    if (folder / "state.json").is_file():
        return _saved_dataset(folder)
    files = [one for one in sorted(folder.iterdir()) if one.is_file() and not one.name.startswith(".")]
    data = [one for one in files if file_format(one) in FORMATS]
    formats = Counter(file_format(one) for one in data)
    if not data:
        raise RecipeError(f"{folder}: no data file in this folder", hint=_what_is_there(folder))
    if len(formats) > 1:
        counted = ", ".join(f"{count} {ending}" for ending, count in formats.most_common())
        raise RecipeError(
            f"{folder}: files of several formats ({counted}); which are the rows?",
            hint=f"Name them by a glob: path: {folder / ('*' + formats.most_common(1)[0][0])}",
        )
    return data


def _saved_dataset(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote, in the order of its list."""
    try:
        # state.json and not a listing: `datasets` may leave cache files in the folder, also with the ending .arrow.
        names = [str(entry["filename"]) for entry in json.loads(read_small_file(folder / "state.json"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        damaged = DataError(f"{folder / 'state.json'}: does not list data files ({error!r})", hint="Save the dataset again.")
        raise system_problem(error, folder / "state.json") or damaged from None
    there = {path.name for path in folder.iterdir()}  # a path that leads elsewhere is none of them, nor is one of any length
    missing = [name for name in names if name not in there or not (folder / name).is_file()]
    if missing or not names:
        named = ", ".join(name[:MAX_NAME] for name in missing[:MAX_SHOWN])
        reason = f"{named} is missing" if missing else "state.json lists no file"
        raise DataError(f"{folder}: the saved dataset is not whole: {reason}", hint="Copy or save the folder again.")
    return [folder / name for name in names]


def _names(folder: Path) -> list[str]:
    return [one.name for one in sorted(folder.iterdir()) if not one.name.startswith(".")]


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in [*path.parents, Path()] if parent.is_dir())


def _what_is_there(folder: Path) -> str:
    names = _names(folder)
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"In {folder} there is: {', '.join(names[:MAX_SHOWN]) or 'nothing'}{more}."
