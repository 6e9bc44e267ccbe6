"""Shards: parts of a stage's rows, each with a seal that proves it complete; finished ones survive an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.store.artifact import write_rows
from align.store.fingerprint import sha256_of_file
from align.store.seal import PLACE, BrokenSeal, place_of_work, read_sealed, write_sealed


def shard_path(folder: Path, index: int) -> Path:
    """File of a shard; names sort in the order of the shards up to 99,999."""
    return folder / f"shard-{index:05d}.jsonl"


def _seal_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def write_shard(shard: Path, rows: list[Any], **facts: Any) -> None:
    """Write the rows, then the seal: their hash and facts about their making.

    A shard that is complete stays as it is. Two may write it at the same time, such as a worker that was given up and the one
    that took its place: with equal rows it is complete when either has ended; with others at worst it has no valid seal.
    """
    if read_seal(shard) is None:
        write_rows(shard, rows)
        seal_shard(shard, **facts)


def seal_shard(shard: Path, **facts: Any) -> None:
    """Write the seal of a shard whose rows are on disk already."""
    write_sealed(_seal_path(shard), {PLACE: place_of_work(shard), "sha256": sha256_of_file(shard), **facts})


def read_seal(shard: Path) -> Mapping[str, Any] | None:
    """The facts of a complete shard; None if it is missing, unfinished or damaged and must be made again."""
    try:
        seal = read_sealed(_seal_path(shard))
        # A kill may come between a shard's rows and its seal; an old seal then does not match new rows.
        is_whole = seal.get(PLACE) == place_of_work(shard) and shard.is_file() and seal.get("sha256") == sha256_of_file(shard)
        return seal if is_whole else None
    except (OSError, BrokenSeal):
        return None
