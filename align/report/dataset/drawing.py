"""The distributions of a data file as drawings: lengths and scores of a row's texts, several in one drawing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import MaxNLocator

from align.report.dataset.distribution import Distribution, shared_edges
from align.report.dataset.facts import Facts, ScoreFacts
from align.report.figure import INK, Plot, Series, draw, model_color, model_variable
from align.report.plots import HISTOGRAM_BINS, WIDTH_INCHES, bin_edges
from align.report.statistics import FloatArray

HEIGHT_INCHES = 2.3
COLORS = {"prompt": 0, "text": 1, "completion": 1, "chosen": 1, "rejected": 2, "margin": 3, "row": 4}
"""Number of the colour by what is drawn, the same in every drawing."""


def drawings(facts: Facts) -> list[Plot]:
    """Every drawing that the rows have numbers for."""
    plots = []
    if facts.tokens is not None and facts.tokens.rows.rows:
        tokens = facts.tokens
        whole = f"Share of rows by tokens as {tokens.model} sees them, what the template adds counted."
        if len(tokens.sides) > 1:
            row_name = "prompt and longer completion" if len(tokens.sides) > 2 else "prompt and completion"
            title = f"Tokens of {row_name}"
            plots.append(_lengths(title, whole, {"row": tokens.rows}, "tokens", limit=tokens.limit))
            plots.append(_lengths("Tokens by text", whole, tokens.sides, "tokens"))
        else:
            plots.append(_lengths("Tokens", whole, tokens.sides, "tokens", limit=tokens.limit))
    described = "Share of rows by length in characters."
    plots.append(_lengths("Characters", described, facts.characters, "characters"))
    if facts.scores is not None:
        plots += _score_plots(facts.scores)
    return plots


def _lengths(title: str, description: str, sides: Mapping[str, Distribution], unit: str, *, limit: int | None = None) -> Plot:
    edges = shared_edges(sides.values(), HISTOGRAM_BINS)
    shares = {name: lengths.histogram(edges) / max(1, lengths.rows) for name, lengths in sides.items()}
    with draw(title, description, WIDTH_INCHES, HEIGHT_INCHES) as plot:
        (axes,) = plot.axes
        _stairs(plot, shares, edges)
        if limit is not None and limit < edges[-1]:
            # Between two bars' lengths: a row of exactly `limit` tokens fits.
            axes.axvline(limit + 0.5, color=INK, linewidth=1.1, linestyle="--")
            axes.text(limit, 1.02, f"{limit:,}", transform=axes.get_xaxis_transform(), ha="center", fontsize=7.5)
            plot.description += f" The broken line is the limit of {limit:,}."
        if max(lengths.maximum for lengths in sides.values()) > edges[-1]:
            plot.description += " The last bar holds everything beyond it."
        axes.set_xlabel(unit)
    return plot


def _score_plots(scores: ScoreFacts) -> list[Plot]:
    both = {"chosen": scores.chosen, "rejected": scores.rejected}
    margins = {"margin": scores.chosen - scores.rejected}
    return [
        _values("Scores", "Share of pairs by the score that came with each side.", both, "score"),
        _values(
            "Margins", "Share of pairs by chosen score minus rejected score. The line is zero.", margins, "margin", zero=True
        ),
    ]


def _values(title: str, description: str, values: Mapping[str, FloatArray], unit: str, *, zero: bool = False) -> Plot:
    edges = bin_edges(np.concatenate(list(values.values())))
    with draw(title, description, WIDTH_INCHES, HEIGHT_INCHES) as plot:
        _stairs(plot, {name: np.histogram(array, edges)[0] / len(array) for name, array in values.items()}, edges)
        if zero and edges[0] <= 0 <= edges[-1]:
            plot.axes[0].axvline(0.0, color=INK, linewidth=1.1)
        plot.axes[0].set_xlabel(unit)
    return plot


def _stairs(plot: Plot, shares: Mapping[str, FloatArray], edges: FloatArray) -> None:
    """Draw a step line per text, with a legend where there are several."""
    (axes,) = plot.axes
    plot.legend = [Series(name, model_variable(COLORS[name])) for name in shares] if len(shares) > 1 else []
    for name, values in shares.items():
        color = model_color(COLORS[name])
        axes.stairs(values, edges, fill=True, color=color, alpha=0.25)
        axes.stairs(values, edges, color=color, linewidth=1.3)
    axes.yaxis.set_major_locator(MaxNLocator(4, prune="lower"))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylim(bottom=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.spines["left"].set_visible(False)
