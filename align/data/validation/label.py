"""Columns that no field takes: those that may be labels, which contradict each other where prompts are equal, and those kept."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.data.validation.duplicates import Table, hash_text, table_of

MAX_LABEL_VALUES = 20
"""A column with more different values is not a label: equal prompts may well differ in it."""
MAX_LABEL_COLUMNS = 100
"""Most unused columns that are checked as labels: rows whose keys are data would fill the memory."""
MAX_OTHER_COLUMNS = 20
MAX_OTHER_CHARACTERS = 100
"""A longer text is no value to group results by."""
MAX_JSON_CHARACTERS = 2_000
"""Of a list or mapping, which only rules read."""
_SURROGATE = re.compile("[\ud800-\udfff]")
LABEL_TYPE = np.dtype([("key", "u8"), ("value", "u8"), ("seq", "u8"), ("line", "u4")])


class LabelColumn:
    """An unused column that may be a label: hashes of prompt and value, as long as it has few values."""

    def __init__(self) -> None:
        self._values: set[Any] = set()
        # None once the column is known to be no label.
        self._entries: array[int] | None = array("Q")

    def add(self, key: int, value: Any, seq: int, line: int) -> None:
        if self._entries is None:
            return
        # A list or mapping is no label, and a set could not hold it.
        if isinstance(value, (str, int, float, type(None))):
            self._values.add(value)
            if len(self._values) <= MAX_LABEL_VALUES:
                # repr, since the number 1, the text "1" and True are different labels.
                self._entries.extend((key, hash_text(repr(value)), seq, line))
                return
        self._entries = None

    def table(self) -> Table | None:
        """One entry per row; None if the column is not a label."""
        return None if self._entries is None else table_of(self._entries, LABEL_TYPE)


def other_columns(row: Mapping[str, Any], unused: Sequence[str]) -> dict[str, str]:
    """The columns that no field took, where they are short: texts and numbers, and lists and mappings as JSON."""
    found: dict[str, str] = {}
    for name in unused[:MAX_OTHER_COLUMNS]:
        value, most = row[name], MAX_OTHER_CHARACTERS
        if isinstance(value, list | dict):
            value, most = _json_text(value), MAX_JSON_CHARACTERS
        text = str(value) if isinstance(value, (str, int, float)) else ""
        # A row with half of a surrogate pair could not be written; nobody groups by it.
        if 0 < len(text) <= most and not _SURROGATE.search(f"{name}{text}"):
            found[str(name)] = text
    return found


def _json_text(value: Any) -> str:
    """Without entries of mappings that are null, which a table has for each key of any row; empty for what JSON cannot hold."""
    try:
        return json.dumps(_without_nulls(value), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return ""


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
