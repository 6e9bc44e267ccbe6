"""Guesses the kind of a file's rows from its columns."""

from __future__ import annotations

from itertools import islice
from typing import Any

from align.data.source import Source, read_file
from align.errors import DataError
from align.rows import DataKind, data_kinds
from align.rows.row import RowReader

LOOKED_AT = 50


def guess_kind(source: Source, max_characters: int = 100_000) -> DataKind[Any]:
    """The kind that leaves the fewest columns of the first rows unused.

    A kind counts only if it reads at least half as many rows as the best: a broken pair without its sides would pass as a prompt.
    Of kinds that leave equally few columns unused, the one that reads the most rows wins.

    Raises:
        DataError: if no kind fits, or two fit equally well.
    """
    file = source.files[0]
    rows = [row for _, row in islice(read_file(file), LOOKED_AT) if isinstance(row, dict)]
    fits: dict[str, tuple[float, int]] = {}
    for name, kind in data_kinds().items():
        if file.columns.keys() - set(kind.fields):
            continue
        reader = RowReader(kind, file.columns, max_characters)
        reads = [read for read in map(reader.read, rows) if read.parts]
        if reads:
            fits[name] = (-sum(len(read.unused) for read in reads) / len(reads), len(reads))
    most = max((count for _, count in fits.values()), default=0)
    fitting = {kind: fit for kind, fit in fits.items() if 2 * fit[1] >= most}
    best = [kind for kind, fit in fitting.items() if fit == max(fitting.values())]
    if len(best) == 1:
        return data_kinds()[best[0]]
    columns = ", ".join(dict.fromkeys(str(name) for row in rows[:1] for name in row)) or "no column"
    if not best:
        raise DataError(
            f"{file.shown}: the first rows fit no kind; they have {columns}",
            hint="Say the kind (--kind instructions) to see what is missing, or map columns: --columns prompt=question.",
        )
    raise DataError(
        f"{file.shown}: the rows can be read as {' or '.join(best)}; they have {columns}",
        hint=f"Say which is meant: --kind {best[0]}.",
    )
