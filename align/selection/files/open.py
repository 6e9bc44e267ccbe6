"""Opens a file of scored candidates with the reader of its format."""

from __future__ import annotations

from align.errors import DataError
from align.selection.files.jsonl import JsonlReader
from align.selection.files.reader import Reader, RowFile

FORMATS = (".parquet", ".jsonl")


def open_file(file: RowFile) -> Reader:
    """The reader of a file.

    Raises:
        DataError: if it is neither Parquet nor JSON Lines.
    """
    if file.path.suffix == ".parquet":
        from align.selection.files.parquet import ParquetReader  # loads pyarrow

        return ParquetReader(file)
    if file.path.suffix == ".jsonl":
        return JsonlReader(file)
    raise DataError(
        f"{file.path}: expected scored candidates in {' or '.join(FORMATS)}",
        hint="Write the rows as Parquet or JSON Lines, not compressed as a whole.",
    )
