"""What is wrong with one row, and where."""

from __future__ import annotations

from dataclasses import dataclass

from align.config.row_checks import ROW_CHECKS, Action


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one row. A row with several gives several."""

    line: int
    """1-based line on which the row starts; of columnar files, the row."""
    row_number: int
    """1-based number among the file's rows; a line of a .json file can hold several."""
    row_id: str
    """Id of the row; made from its number where it has none."""
    field: str
    """Field of ours that is concerned; empty when it is the whole row."""
    reason: str
    """`drop_reason`."""
    message: str
    """The value and what was expected."""
    ends_file: bool = False
    """Whether nothing after it could be read; such a file cannot be used, whatever on_invalid says."""
    shares_line: bool = False
    """Whether the row before it starts on the same line, so that the line alone does not tell which row is meant."""
    action: Action = "error"
    """What becomes of the row."""
    file: str = ""
    """Name of the file, as messages call it."""
    counted: bool = True
    """Whether this is the row's first problem: the one that its drop has as its reason."""
    seq: int = -1
    """0-based number among the rows of the whole source; -1 for what is no row."""

    @property
    def place(self) -> str:
        """`file:line`, with the row's number where several share the line."""
        return f"{self.file}:{self.line}" + (f" (row {self.row_number:,})" if self.shares_line else "")

    def render(self) -> str:
        """`file:line: field: message`."""
        return f"{self.place}: {self.field + ': ' if self.field else ''}{self.message}"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ROW_CHECKS[self.reason].advice
