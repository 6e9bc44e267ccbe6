"""Findings of earlier plans, by the content that they are about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.pipeline.checks.finding import Finding
from align.store.content_cache import ContentCache

CHECKS_NAME = "checks.json"
CHECKS_VERSION = 4
"""Raised whenever the same files may give other findings than before."""


class FindingCache:
    """Findings by key, in a file of the store."""

    def __init__(self, store_root: Path) -> None:
        self._cache = ContentCache(store_root / CHECKS_NAME, CHECKS_VERSION, lambda value: _findings(value) is not None)

    def findings(self, key: Any, look: Callable[[], list[Finding]]) -> list[Finding]:
        """What `look` finds, or found before.

        Args:
            key: everything that the findings depend on, names in messages included; a JSON value.
        """
        return _findings(self._cache.value(key, lambda: [finding.to_json() for finding in look()])) or []

    def save(self) -> None:
        """Write what is new."""
        self._cache.save()


def _findings(value: Any) -> list[Finding] | None:
    """None for a value that is none of findings."""
    try:
        found = [Finding(**finding) for finding in value]
    except TypeError:
        return None
    return found if all(isinstance(text, str) for finding in found for text in finding.to_json().values()) else None
