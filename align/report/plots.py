"""Drawings of the comparison, for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from align.report.answers import AnswerTable
from align.report.cost import Cost
from align.report.estimate import Estimate
from align.report.figure import INK, MUTED, PANEL, Plot, Series, draw, evenly
from align.report.results import Results
from align.report.statistics import FloatArray, prompt_means
from align.report.style import RowStyle, row_styles

MAX_POINTS_PER_ROW = 250
HISTOGRAM_BINS = 32
LOG_AXIS_RATIO = 20
"""Costs that differ by more are on a logarithmic axis."""
WIDTH_INCHES = 4.3  # small, so that the text stays readable when a phone shrinks the drawing


def score_scatters(results: Results, table: AnswerTable) -> list[Plot]:
    """The first scorer against each of the others: one point per prompt, and each model's mean with its intervals.

    A second, independent scorer shows reward hacking: a model that exploits the first moves to the right, but down.
    """
    first, *others = results.scorers
    return [_scatter(results, table, first, other) for other in others]


def _scatter(results: Results, table: AnswerTable, x_scorer: str, y_scorer: str) -> Plot:
    description = (
        f"{y_scorer} against {x_scorer}. Small: one prompt. Large: the mean of a model, with 95 % intervals. "
        "A model that moves right but down gains on one score at the other's cost."
    )
    styles, title = row_styles(results), f"{y_scorer} against {x_scorer}"
    with draw(title, description, WIDTH_INCHES, 3.0, salt=f"scatter {x_scorer} {y_scorer}") as plot:
        (axes,), plot.legend = plot.axes, row_legend(results)
        for name, style in styles.items():
            for member in results.members(name):
                x, y = (prompt_means(table.scores[member][scorer]) for scorer in (x_scorer, y_scorer))
                kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
                # Every point is an SVG element; thousands would make the page slow. A method's seeds share the points of one row.
                kept = evenly(kept, MAX_POINTS_PER_ROW // len(results.members(name)))
                axes.plot(x[kept], y[kept], style.marker, color=style.color, ms=2.6, alpha=0.28, mew=0)
        for name, style in styles.items():
            x_score, y_score = (results.models[name].scores[scorer] for scorer in (x_scorer, y_scorer))
            _mean_point(axes, x_score.mean, y_score.mean, style, ends(x_score), ends(y_score))
        axes.set_xlabel(plot.label(x_scorer))
        axes.set_ylabel(plot.label(y_scorer))
    return plot


def ends(estimate: Estimate) -> list[list[float]]:
    """Lengths of an interval's two arms, as matplotlib wants them."""
    return [[estimate.mean - estimate.ci95[0]], [estimate.ci95[1] - estimate.mean]]


def _mean_point(axes: Axes, x: float, y: float, style: RowStyle, xerr: Any, yerr: Any) -> None:
    axes.errorbar(
        [x],
        [y],
        xerr=xerr,
        yerr=yerr,
        fmt=style.marker,
        color=style.color,
        markerfacecolor=PANEL if style.hollow else style.color,
        markeredgecolor=style.color if style.hollow else PANEL,
        markersize=6.5,
        elinewidth=1.6,
        zorder=10,
    )


def row_legend(results: Results) -> list[Series]:
    """Every model and method with its colour and marker, the same in every drawing; best of n is one entry."""
    styles = row_styles(results)
    legend = [Series(name, styles[name].variable, marker=styles[name].marker) for name in styles if not styles[name].hollow]
    if results.best_of_rows:
        style = styles[results.best_of_rows[0]]
        legend.insert(1, Series(f"{results.baseline} best of n", style.variable, marker=style.marker, hollow=True))
    return legend


def frontiers(results: Results) -> list[Plot]:
    """Score against KL to the baseline, one drawing per scorer; none where no row's KL is known.

    Methods that moved differently far from the baseline can be compared only at the same KL, where the higher score is better.
    After Gao et al. 2023, "Scaling laws for reward model overoptimization", whose axis is sqrt(KL): on it, their gold scores
    are smooth curves that turn down where the reward model is over-optimised, and best of n and RL can be compared.
    """
    rows = results.models.values()
    if all(row.kl_to_baseline is None and row.kl_bound is None for row in rows):
        return []
    return [_frontier(results, scorer) for scorer in results.scorers]


def _frontier(results: Results, scorer: str) -> Plot:
    description = (
        f"{scorer} against the KL to {results.baseline}, in nats on a square-root axis, with 95 % intervals. "
        "Higher at the same KL is better."
    )
    if results.several_seeds:
        description += " Fainter points are single seeds."
    if results.best_of_rows:
        description += " Best of n is at its KL bound, ln n − (n − 1)/n: at most that far."
    styles, farthest = row_styles(results), 0.0
    with draw(f"Frontier of {scorer} and KL", description, WIDTH_INCHES, 3.0, salt=f"frontier {scorer}") as plot:
        (axes,), plot.legend = plot.axes, row_legend(results)
        for name, row in results.models.items():
            score, kl = row.scores[scorer], row.kl_to_baseline
            for one in (row.replicates or {}).values() if name in results.several_seeds else ():
                if one.kl_to_baseline is not None:
                    x, y = _root(one.kl_to_baseline.mean), one.scores[scorer].mean
                    axes.plot([x], [y], styles[name].marker, color=styles[name].color, ms=3.5, alpha=0.55, mew=0)
            if kl is not None:
                # The ends go through the root each by itself: on this axis the arms are not symmetric.
                arms = [[_root(kl.mean) - _root(kl.ci95[0])], [_root(kl.ci95[1]) - _root(kl.mean)]]
                _mean_point(axes, _root(kl.mean), score.mean, styles[name], arms, ends(score))
                farthest = max(farthest, _root(kl.ci95[1]))
            elif name == results.baseline:
                _mean_point(axes, 0.0, score.mean, styles[name], None, ends(score))
        farthest = max(farthest, _best_of_line(axes, results, scorer))
        # Evenly spaced on the axis, labelled in nats; a set, because rounding can make two of them equal.
        ticks = sorted({float(f"{root**2:.2g}") for root in np.linspace(0.0, farthest or 1.0, 5)})
        axes.set_xticks([_root(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        axes.set_xlabel(f"KL to {plot.label(results.baseline)} (nats, square-root axis)")
        axes.set_ylabel(plot.label(scorer))
    return plot


def cost_frontiers(results: Results) -> list[Plot]:
    """Score against what a model cost, one drawing per scorer; none where the cost of fewer than two rows is known.

    The cost is of everything that a model was made from, so that a stage that several need counts for each. It is in estimated
    operations if those of all rows are known, else in seconds.
    """
    costs = {name: cost for name, row in results.models.items() if (cost := row.cost) is not None and not cost.per_answer}
    known, in_flops = total_costs(costs)
    return [_cost_frontier(results, scorer, known, in_flops=in_flops) for scorer in results.scorers] if len(known) > 1 else []


def total_costs(costs: Mapping[str, Cost]) -> tuple[dict[str, float], bool]:
    """By name, the cost of everything that a model was made from, and whether it is in operations rather than seconds."""
    flops = {name: cost.total_flops for name, cost in costs.items() if cost.total_flops}
    seconds = {name: cost.total_seconds for name, cost in costs.items() if cost.total_seconds}
    in_flops = bool(flops) and len(flops) == len(seconds)
    return (flops, True) if in_flops else (seconds, False)


def _cost_frontier(results: Results, scorer: str, costs: Mapping[str, float], *, in_flops: bool) -> Plot:
    unit = "estimated floating-point operations" if in_flops else "seconds"
    description = (
        f"{scorer} against the cost of everything that a model was made from, in {unit}, with 95 % intervals. "
        "The line joins the models that no cheaper one equals: higher at the same cost is better."
    )
    if results.best_of_rows:
        description += " Best of n is left out: it pays for every answer."
    styles = row_styles(results)
    with draw(f"Cost and {scorer}", description, WIDTH_INCHES, 3.0, salt=f"cost {scorer}") as plot:
        (axes,), plot.legend = plot.axes, [entry for entry in row_legend(results) if not entry.hollow]
        means = {name: results.models[name].scores[scorer].mean for name in costs}
        for name, cost in costs.items():
            _mean_point(axes, cost, means[name], styles[name], None, ends(results.models[name].scores[scorer]))
        draw_cost_axis(axes, costs, means, in_flops=in_flops)
        axes.set_ylabel(plot.label(scorer))
    return plot


def draw_cost_axis(axes: Axes, costs: Mapping[str, float], scores: Mapping[str, float], *, in_flops: bool) -> None:
    """The axis of cost, and the frontier as a dashed line."""
    best = frontier_of(costs, scores)
    xs, ys = [costs[name] for name in best], [scores[name] for name in best]
    # Steps: between two models, what one gets for the money is the cheaper one.
    axes.step(xs, ys, where="post", color=MUTED, linewidth=1.1, linestyle="--", zorder=2)
    if max(costs.values()) > LOG_AXIS_RATIO * min(costs.values()):
        axes.set_xscale("log")
    axes.set_xlabel("cost (FLOPs, estimated)" if in_flops else "cost (seconds)")


def frontier_of(costs: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    """The names that score higher than everything that costs as much or less, the cheapest first.

    Args:
        scores: of those that count; others may have a cost.
    """
    best: list[str] = []
    for name in sorted(scores, key=lambda name: (costs[name], -scores[name])):
        if not best or scores[name] > scores[best[-1]]:
            best.append(name)
    return best


def _root(kl: float) -> float:
    # An estimate of a tiny KL can be below zero; the KL itself cannot.
    return math.sqrt(max(0.0, kl))


def _best_of_line(axes: Axes, results: Results, scorer: str) -> float:
    """Draw best of n at its KL bounds, joined by a line and labelled with n. Returns its largest x."""
    farthest, xs, ys = 0.0, [], []
    for name in results.best_of_rows:
        row, style = results.models[name], row_styles(results)[name]
        x, score = _root(row.kl_bound or 0.0), row.scores[scorer]
        _mean_point(axes, x, score.mean, style, None, ends(score))
        n = row.best_of.n if row.best_of else 0
        axes.annotate(str(n), (x, score.mean), (-5, 3), textcoords="offset points", ha="right", fontsize=7.5)
        xs.append(x)
        ys.append(score.mean)
        farthest = max(farthest, x)
    if xs:
        color = row_styles(results)[results.best_of_rows[0]].color
        axes.plot(xs, ys, linestyle="--", linewidth=1.2, color=color)
        axes.annotate("KL bound", (xs[-1], ys[-1]), (5, -9), textcoords="offset points", fontsize=7.5, color=color)
    return farthest


def score_histograms(results: Results, table: AnswerTable) -> list[Plot]:
    """The scores of all candidates: one drawing per scorer, one row per model."""
    plots = []
    for scorer in results.scorers:
        values = {
            name: _pooled(results, name, {m: of[scorer] for m, of in table.scores.items()}) for name in _drawn_rows(results)
        }
        description = f"Share of completions by {scorer} score. The line is the mean."
        plots.append(_histogram(f"Distribution of {scorer}", description, scorer, values, row_styles(results)))
    return plots


def length_histogram(results: Results, table: AnswerTable) -> Plot:
    """The lengths of all completions in tokens, one row per model."""
    values = {name: _pooled(results, name, table.tokens) for name in _drawn_rows(results)}
    description = "Share of completions by length. The line is the mean; a peak at the right end is what the token limit cut."
    return _histogram("Completion length", description, "tokens", values, row_styles(results), whole_numbers=True)


def _drawn_rows(results: Results) -> list[str]:
    """Models and methods, the baseline first: the rows that have completions of their own."""
    return [name for name in results.models_baseline_first if results.members(name)]


def _pooled(results: Results, name: str, values: Mapping[str, FloatArray]) -> FloatArray:
    """The values of all completions of a row, over its seeds."""
    return np.concatenate([values[member].ravel() for member in results.members(name)])


def _histogram(
    title: str,
    description: str,
    x_label: str,
    values: Mapping[str, FloatArray],
    styles: Mapping[str, RowStyle],
    *,
    whole_numbers: bool = False,
) -> Plot:
    finite = {name: array[np.isfinite(array)] for name, array in values.items()}
    # One set of bins for all rows, so that their shapes can be compared.
    edges = bin_edges(np.concatenate(list(finite.values())), whole_numbers=whole_numbers)
    with draw(title, description, WIDTH_INCHES, 0.5 + 0.66 * len(values), rows=len(values)) as plot:
        for axes, (name, array) in zip(plot.axes, finite.items(), strict=True):
            # Shares, not counts: a method has the completions of all its seeds, and a scorer may have failed on some.
            shares = np.histogram(array, edges)[0] / max(1, len(array))
            axes.stairs(shares, edges, fill=True, color=styles[name].color, alpha=0.32)
            axes.stairs(shares, edges, color=styles[name].color, linewidth=1.2)
            if len(array):
                axes.axvline(float(array.mean()), color=INK, linewidth=1.1)
            axes.text(0.0, 1.02, plot.label(name), transform=axes.transAxes, color=INK, fontsize=8.5)
            axes.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
            axes.set_ylim(bottom=0)
            axes.spines["left"].set_visible(False)
        plot.axes[-1].set_xlabel(plot.label(x_label))
    return plot


def bin_edges(values: FloatArray, *, whole_numbers: bool = False) -> FloatArray:
    """Edges of `HISTOGRAM_BINS` bins of equal width; of fewer where the values are whole numbers that lie close together."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if whole_numbers:
        # Bins as wide as a whole number: otherwise some would hold one length more than their neighbours, and show false peaks.
        step = max(1, math.ceil((high - low + 1) / HISTOGRAM_BINS))
        return np.arange(low - 0.5, high + step + 0.5, step, dtype=np.float64)
    # Equal values would give bins of width zero.
    if high - low <= 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, HISTOGRAM_BINS + 1)
