"""Seals: JSON files that say what belongs to a result, a shard or a checkpoint, and whether they themselves are as written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.runtime.small_file import read_small_file
from align.store.atomic import write_json
from align.store.fingerprint import canonical_json

SEAL = "seal"
"""Its field for the hash of the others."""
PLACE = "place"
WORK_NAME = "work"
"""Folder of an entry for unfinished shards and checkpoints."""


class BrokenSeal(ValueError):
    """What is wrong with a sealed file, in words that follow its name."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with a hash of its own content, atomically."""
    write_json(path, {**content, SEAL: _hash_of(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, the seal included.

    Raises:
        BrokenSeal: if the file cannot be read or was changed since.
        FileNotFoundError: if there is none.
    """
    try:
        content = json.loads(read_small_file(path))
        found = _hash_of({key: value for key, value in content.items() if key != SEAL})
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenSeal(f"cannot be read: it {error.strerror}") from error
    except (ValueError, RecursionError, AttributeError) as error:
        raise BrokenSeal("cannot be read: it is not the JSON that was written") from error
    if SEAL not in content:
        raise BrokenSeal("has no seal: an earlier version of align wrote it, or it was changed")
    if content[SEAL] != found:
        raise BrokenSeal("was changed after it was written")
    return content  # type: ignore[no-any-return]


def place_of_work(path: Path) -> str:
    """Where unfinished work belongs: name of the entry and path inside; outside the work of an entry, its name alone."""
    parts = path.absolute().parts
    work = max((index for index, part in enumerate(parts) if part == WORK_NAME), default=0)
    return "/".join(parts[work - 1 :]) if work > 1 else path.name


def _hash_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
