"""First rows of datasets that are too large to download: read once over the network, then kept on this machine.

<folder>/<owner>--<name>-<fingerprint>/
    rows.jsonl       the rows, as they came
    manifest.json    written last: commit, number and hash of the rows
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from align.data.reader import RawRow, read_raw
from align.errors import EnvironmentProblem
from align.store.artifact import INPUT_STAGE, ROWS_NAME, Entry, Manifest
from align.store.atomic import atomic_writer
from align.store.fingerprint import fingerprint
from align.store.lock import hold

KEPT_VERSION = 1
"""Raised whenever the same dataset would give other rows than before."""


def keep_rows(
    folder: Path, key: dict[str, str | None], commit: str | None, max_rows: int, read: Callable[[], Iterator[dict[str, Any]]]
) -> tuple[str | None, Iterator[RawRow]]:
    """The first rows of a split, numbered from 1, and their commit.

    They are read only if they are not in the folder: of this commit, whole and undamaged, and enough of them. Fewer rows than
    `max_rows` are all that there are.

    Args:
        key: names the split: `dataset`, `subset`, `split`, and `revision` as the recipe has it.
        commit: that of the revision now; None if the hub cannot be reached: then any will do.
        read: reads the rows; its errors pass through, and leave what is kept as it is.
    Raises:
        EnvironmentProblem: if the folder cannot be written, or the disk is full.
    """
    name = f"{str(key['dataset']).strip('/').replace('/', '--')}-{fingerprint([KEPT_VERSION, key])}"
    entry = Entry(folder / name, is_named=False)
    _require_writable(folder)
    with hold(entry.lock_path, on_wait=lambda _: None):
        manifest = entry.read_manifest() if entry.verify()[0] == "done" else None
        if manifest is None or not _will_do(manifest, commit, max_rows):
            manifest = _keep(entry, key, commit, max_rows, read())
    return manifest.source, islice(read_raw(entry.path / ROWS_NAME), max_rows)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        raise EnvironmentProblem(f"{folder}: cannot be written", hint="Set HF_HOME to a folder that can be.")


def _will_do(manifest: Manifest, commit: str | None, max_rows: int) -> bool:
    rows, wanted = manifest.rows_out or 0, manifest.config["max_rows"]
    return commit in (None, manifest.source) and (rows >= max_rows or rows < wanted)


def _keep(
    entry: Entry, key: dict[str, str | None], commit: str | None, max_rows: int, rows: Iterator[dict[str, Any]]
) -> Manifest:
    # In the work folder, so that the rows of an older commit stay until all of the new ones are here.
    unfinished, count = entry.work / ROWS_NAME, 0
    with atomic_writer(unfinished) as stream:
        for row in islice(rows, max_rows):
            count += 1
            # ASCII, because a value that datasets parsed from JSON may hold half a surrogate pair, which UTF-8 cannot.
            stream.write(json.dumps(row, default=_plain).encode() + b"\n")
    entry.begin()
    os.replace(unfinished, entry.path / ROWS_NAME)
    config = {**key, "max_rows": max_rows}
    named: dict[str, Any] = {"stage_version": KEPT_VERSION, "fingerprint": fingerprint(config), "config": config}
    whole = Manifest(kind="rows", stage=INPUT_STAGE, inputs={}, seed=None, source=commit, rows_out=count, **named)
    return entry.commit(whole)


def _plain(value: Any) -> str | None:
    """A value that JSON does not have: a time as text; the bytes of an image not at all."""
    return None if isinstance(value, bytes | bytearray | memoryview) else str(value)
