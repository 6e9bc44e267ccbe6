"""Damage to files, for tests that it is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from align.store.fingerprint import HASHES_NAME, FileHashes, sha256_of_json


def overwrite(path: Path, content: bytes) -> None:
    """Write into a file in place, also into a read-only one of a finished result."""
    path.chmod(0o644)
    path.write_bytes(content)


def flip(path: Path) -> None:
    """Change a byte in the middle, or add one to an empty file; the modification time is what it was."""
    status, content = path.stat(), bytearray(path.read_bytes()) or bytearray(1)
    content[len(content) // 2] ^= 1
    overwrite(path, bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rot(path: Path) -> None:
    """Change a byte of a file in a store without a trace: what the store remembers of the file looks right."""
    cache = next(folder / HASHES_NAME for folder in path.parents if (folder / HASHES_NAME).exists())
    digest = FileHashes(cache).of(path)
    flip(path)
    known, status = json.loads(cache.read_bytes())["files"], path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    for name in {str(path.resolve()), *(key for key, value in known.items() if value[3] == status.st_ino)}:
        known[name] = [*state, digest]
    cache.write_text(json.dumps({"files": known, "seal": sha256_of_json(known)}))
