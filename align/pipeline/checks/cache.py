"""Findings of earlier plans, by the content that they are about. A damaged cache is no error: everything is looked at again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.errors import EnvironmentProblem
from align.pipeline.checks.finding import Finding
from align.store.atomic import write_json
from align.store.fingerprint import fingerprint

CHECKS_NAME = "checks.json"
CHECKS_VERSION = 1
"""Raised whenever the same files may give other findings than before."""
MOST_ENTRIES = 500


class FindingCache:
    """Findings by key, in a file of the store."""

    def __init__(self, store_root: Path) -> None:
        self._path = store_root / CHECKS_NAME
        self._known = _read(self._path)
        self._is_new = False

    def findings(self, key: Any, look: Callable[[], list[Finding]]) -> list[Finding]:
        """What `look` finds, or found before.

        Args:
            key: everything that the findings depend on, names in messages included; a JSON value.
        """
        digest = fingerprint([CHECKS_VERSION, key])
        # At the end again, so that the oldest entries leave first.
        if (known := self._known.pop(digest, None)) is None:
            self._is_new, known = True, look()
        self._known[digest] = known
        return known

    def save(self) -> None:
        """Write what is new; a store that cannot be written to is the run's concern."""
        if not self._is_new:
            return
        entries = list(self._known.items())[-MOST_ENTRIES:]
        with contextlib.suppress(OSError, EnvironmentProblem):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {digest: [finding.to_json() for finding in found] for digest, found in entries})


def _read(path: Path) -> dict[str, list[Finding]]:
    try:
        loaded = json.loads(path.read_bytes())
        return {str(digest): [Finding(**finding) for finding in found] for digest, found in loaded.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
