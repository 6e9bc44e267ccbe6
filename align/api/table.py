"""A table that is Arrow, pandas or plain Python, whichever the reader wants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.api.show import as_html, as_text
from align.errors import EnvironmentProblem
from align.metric import number_text

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from rich.table import Table as RichTable

SHOWN_ROWS = 10
SHOWN_COLUMNS = 8
SHOWN_CHARACTERS = 40
MAX_BLOCK_BYTES = 2**31 - 1


class Table:
    """Rows with named columns. pyarrow, polars, DuckDB and pandas take it as it is (`__arrow_c_stream__`)."""

    def __init__(self, arrow: pyarrow.Table) -> None:
        self._arrow = arrow

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Table:
        """The table of some dicts; a row that lacks a column has a null there."""
        import pyarrow

        columns = dict.fromkeys(name for row in rows for name in row)
        return cls(pyarrow.table({name: [row.get(name) for row in rows] for name in columns}))

    @classmethod
    def read(cls, paths: Iterable[Path], **labels: Sequence[str]) -> Table:
        """The rows of JSON Lines files, one file after the other.

        Args:
            labels: further columns in front, with one value per file.
        """
        import pyarrow

        parts = []
        for number, path in enumerate(paths):
            part = _read_json_lines(path)
            for name, values in labels.items():
                part = part.add_column(0, name, [[values[number]] * len(part)])
            parts.append(part)
        # A column without any value has no type in one file and the type of its values in another.
        return cls(pyarrow.concat_tables(parts, promote_options="permissive") if parts else pyarrow.table({}))

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self._arrow.column_names)

    def to_arrow(self) -> pyarrow.Table:
        """The table as a pyarrow.Table."""
        return self._arrow

    def to_list(self) -> list[dict[str, Any]]:
        """The rows as dicts of plain Python values."""
        rows: list[dict[str, Any]] = self._arrow.to_pylist()
        return rows

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a pandas.DataFrame.

        Raises:
            EnvironmentProblem: if pandas is not installed; nothing else here needs it.
        """
        try:
            import pandas  # noqa: F401
        except ImportError:
            hint = "Install it (pip install pandas), or use to_arrow() or to_list()."
            raise EnvironmentProblem("pandas is not installed", hint=hint) from None
        return self._arrow.to_pandas()

    def __len__(self) -> int:
        return len(self._arrow)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_list())

    def __getitem__(self, column: str) -> list[Any]:
        """The values of a column. Raises KeyError if there is no such column."""
        values: list[Any] = self._arrow.column(column).to_pylist()
        return values

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._arrow.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return as_text(self._shown())

    def _repr_html_(self) -> str:
        return as_html(self._shown())

    def _shown(self) -> RichTable:
        """The first rows and columns, with long values cut."""
        from rich import box
        from rich.table import Table as RichTable

        hidden = self.columns[SHOWN_COLUMNS:]
        caption = f"{len(self):,} rows" + (f", {len(hidden)} more columns: {', '.join(hidden)}" if hidden else "")
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, caption=caption, caption_justify="left")
        for name in self.columns[:SHOWN_COLUMNS]:
            table.add_column(name, no_wrap=True, max_width=SHOWN_CHARACTERS)
        for row in self._arrow.slice(0, SHOWN_ROWS).to_pylist():
            table.add_row(*(_cell(row[name]) for name in self.columns[:SHOWN_COLUMNS]))
        if len(self) > SHOWN_ROWS:
            table.add_row("…")
        return table


def _read_json_lines(path: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow import json

    size = path.stat().st_size
    if size == 0:
        return pyarrow.table({})
    # In one block: the type of a column comes from the whole file, not from its first rows, in which it may have no value.
    return json.read_json(path, read_options=json.ReadOptions(block_size=min(size + 1, MAX_BLOCK_BYTES)))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number_text(value)
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
