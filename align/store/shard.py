"""Shards: pieces of a stage's rows that were finished before an interruption, each with a seal that proves it whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.store.artifact import write_rows
from align.store.atomic import write_json
from align.store.fingerprint import sha256_of_file


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.jsonl"


def _seal_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def write_shard(shard: Path, rows: list[Any], **facts: Any) -> None:
    """Write the rows, then the seal: their hash, and facts about how they were made."""
    write_rows(shard, rows)
    seal_shard(shard, **facts)


def seal_shard(shard: Path, **facts: Any) -> None:
    """Write the seal of a shard whose rows are on disk already."""
    write_json(_seal_path(shard), {"sha256": sha256_of_file(shard), **facts})


def read_seal(shard: Path) -> Mapping[str, Any] | None:
    """The facts of a shard that is whole; None for one that is missing, unfinished or damaged, which is to be made again."""
    try:
        seal: dict[str, Any] = json.loads(_seal_path(shard).read_text())
        return seal if seal["sha256"] == sha256_of_file(shard) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
