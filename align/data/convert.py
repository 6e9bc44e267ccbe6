"""Converts a source of any shape and format into one file of canonical rows, and lists the dropped rows beside it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.config.inputs import DataInput
from align.data.ingest import Ingested, ingest
from align.data.quality.overlap import EvaluationIndex
from align.data.source import Source
from align.data.writer import require_writable_format, write_canonical
from align.errors import RecipeError
from align.store.artifact import DROPS_NAME, ROWS_NAME
from align.store.atomic import write_bytes
from align.system_errors import writing_to

DROPS_SUFFIX = ".drops.jsonl"


def convert(spec: DataInput, source: Source, target: Path, *, evaluation: EvaluationIndex | None = None) -> tuple[Ingested, Path]:
    """Write the usable rows of a source to `target`, and the dropped ones beside it.

    Args:
        source: the files of `spec`.
        target: a .jsonl or .parquet file; an existing one is replaced.
        evaluation: prompts that no row may overlap; rows that do are dropped.
    Returns:
        Counts and notes, and the file of dropped rows, each with its reason.
    Raises:
        RecipeError: if `target` is one of the source's files, or its ending names no format that can be written.
        DataError: see `ingest`. Nothing is written then.
        EnvironmentProblem: if the files cannot be written.
    """
    require_writable_format(target)
    drops = target.with_name(target.stem + DROPS_SUFFIX)
    for file in source.files:
        origin = file.origin
        # samefile sees through links, relative paths and letter case; a comparison of the names would not.
        if isinstance(origin, Path) and any(path.exists() and os.path.samefile(path, origin) for path in (target, drops)):
            raise RecipeError(f"{target}: would overwrite {file.shown}, which is being read", hint="Give another name.")
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # A refused input must leave an existing target untouched, so its rows go to a temporary folder first.
        with tempfile.TemporaryDirectory(prefix=".align-", dir=target.parent) as temporary:
            folder = Path(temporary)
            result = ingest(spec, source, folder, evaluation=evaluation)
            write_canonical(target, spec.row_kind, _rows(folder / ROWS_NAME))
            write_bytes(drops, (folder / DROPS_NAME).read_bytes())
    return result, drops


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            yield json.loads(line)
