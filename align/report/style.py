"""How each row of the comparison looks in the report: one colour and one marker, the same in every table and drawing."""

from __future__ import annotations

from dataclasses import dataclass

from align.report.figure import MARKERS, model_color, model_variable
from align.report.results import Results


@dataclass(frozen=True)
class RowStyle:
    """The look of one row."""

    color: str
    """Stand-in of the colour, for matplotlib."""
    variable: str
    """CSS variable of the colour, for HTML."""
    marker: str
    hollow: bool = False
    """Best of n: the baseline's colour and marker, drawn hollow, because it is the baseline's model."""


def row_styles(results: Results) -> dict[str, RowStyle]:
    """Style by row. Models and methods are numbered, the baseline first; rows of best of n look like the baseline."""
    trained = [name for name in results.models_baseline_first if name not in results.best_of_rows]
    styles = {name: _style(index) for index, name in enumerate(trained)}
    return styles | {name: _style(0, hollow=True) for name in results.best_of_rows}


def _style(index: int, *, hollow: bool = False) -> RowStyle:
    # Shifted by one whenever the colours repeat, so that no two rows have both colour and marker in common.
    marker = MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]
    return RowStyle(model_color(index), model_variable(index), marker, hollow)
