"""What earlier commands found out, by the content that it is about. A damaged cache is no error: all is found out again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.errors import EnvironmentProblem
from align.store.fingerprint import fingerprint
from align.store.seal import BrokenSeal, read_sealed, write_sealed

MOST_ENTRIES = 500
VALUES = "values"


class ContentCache:
    """JSON values by key, in a sealed file of a store.

    Args:
        path: of the file.
        version: raised whenever the same content may give another value than before.
        is_valid: whether a value that was read is of the right form; others are found out again.
    """

    def __init__(self, path: Path, version: int, is_valid: Callable[[Any], bool]) -> None:
        self._path = path
        self._version = version
        self._known = _read(path, is_valid)
        self._is_new = False

    def value(self, key: Any, find: Callable[[], Any]) -> Any:
        """What `find` returns, or returned before.

        Args:
            key: everything that the value depends on; a JSON value.
        """
        digest = fingerprint([self._version, key])
        # At the end again, so that the oldest entries leave first.
        if (known := self._known.pop(digest, None)) is None:
            self._is_new, known = True, find()
        self._known[digest] = known
        return known

    def save(self) -> None:
        """Write what is new; a store that cannot be written to is the run's concern. Half characters cannot be written."""
        if not self._is_new:
            return
        with contextlib.suppress(OSError, EnvironmentProblem, UnicodeError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(self._path, {VALUES: dict(list(self._known.items())[-MOST_ENTRIES:])})


def _read(path: Path, is_valid: Callable[[Any], bool]) -> dict[str, Any]:
    try:
        values = read_sealed(path).get(VALUES)
    except (OSError, BrokenSeal):
        return {}
    return {digest: value for digest, value in values.items() if is_valid(value)} if isinstance(values, dict) else {}
