"""What a stage reads in the rows that it names, beyond what their kind requires. Each stage declares its own: `row_needs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from align.config.reference import FieldPath


class RowNeed(NamedTuple):
    """One field of rows that a stage cannot do without."""

    rows: str
    """The field of the stage that names the rows."""
    reader: FieldPath
    """The setting that reads the field, from the stage on."""
    field: str
    """The field of a row."""
    lack: Callable[[Any], str]
    """What a record has in place of it, such as "no `reference`"; empty if it has what is needed."""
    reason: str
    """Who reads it, as the end of a sentence: "the rule 'topic' reads it"."""
    alternative: str
    """What to do if the rows stay as they are: "take the rule out"."""
    leaves_out: bool = False
    """Whether the stage leaves out rows without it, and does not stop at the first."""
