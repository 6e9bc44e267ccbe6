"""Guesses the kind of a file's rows from its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from align.config.row_checks import ROW_CHECKS
from align.data.source import Source, read_file
from align.errors import DataError
from align.formats.raw import RawProblem
from align.rows import DataKind, data_kinds
from align.rows.row import RowReader

LOOKED_AT = 50


def guess_kind(source: Source, max_characters: int = 100_000) -> DataKind[Any]:
    """The kind that fits the first rows best; see `kinds_that_fit`.

    Raises:
        DataError: if no kind fits, or two fit equally well.
    """
    file = source.files[0]
    read = list(islice(read_file(file), LOOKED_AT))
    rows = [row for _, row in read if isinstance(row, dict)]
    if not rows and read and isinstance(problem := read[0][1], RawProblem):
        advice = ROW_CHECKS[problem.reason].advice
        raise DataError(f"{file.shown}:{read[0][0]}: {problem.message}", hint=f"{advice[0].upper()}{advice[1:]}.")
    best = kinds_that_fit(file.columns, rows, max_characters)
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


def kinds_that_fit(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], max_characters: int = 100_000) -> list[str]:
    """The kinds that leave the fewest columns of the rows unused; several where they fit equally well.

    A kind counts only if it reads at least half as many rows as the best: a broken pair without its sides would pass as a prompt.
    Of kinds that leave equally few columns unused, the one that reads the most rows wins.

    Args:
        columns: align's field → column of the file, where they differ.
    """
    rows, fits = list(rows), dict[str, tuple[float, int]]()
    for name, kind in data_kinds().items():
        own_shapes = tuple(shape for shape in kind.shapes if not shape.is_converted)
        if columns.keys() - set(kind.fields):
            continue
        reader = RowReader(replace(kind, shapes=own_shapes), columns, max_characters)
        reads = [read for read in map(reader.read, rows) if read.parts]
        if reads:
            fits[name] = (-sum(len(read.unused) for read in reads) / len(reads), len(reads))
    most = max((count for _, count in fits.values()), default=0)
    fitting = {kind: fit for kind, fit in fits.items() if 2 * fit[1] >= most}
    return [kind for kind, fit in fitting.items() if fit == max(fitting.values())]
