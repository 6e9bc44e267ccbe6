"""What the comparison and the training looked like, as drawings for the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from align.report.answers import AnswerTable
from align.report.figure import (
    GRID,
    INK,
    MARKERS,
    MUTED,
    PANEL,
    Labels,
    Plot,
    Series,
    drawing_style,
    model_color,
    model_variable,
    new_axes,
    to_svg,
)
from align.report.results import Results
from align.report.statistics import FloatArray, prompt_means

MAX_POINTS_PER_MODEL = 250
MAX_POINTS_PER_CURVE = 400
HISTOGRAM_BINS = 32
WIDTH_INCHES = 4.3  # small, so that the text stays readable when a phone shrinks the drawing

Curve = Sequence[Mapping[str, Any]]
Points = dict[str, tuple[FloatArray, FloatArray]]

# Shown first, in this order; any other metric follows in the order it was logged.
CURVES_FIRST = ("loss", "rewards/accuracies", "rewards/margins", "rewards", "logps", "learning_rate", "grad_norm")
# Totals that the trainer logs once at the end, and clocks: no curve of training.
NOT_A_CURVE = re.compile(r"step|epoch|total_flos|num_input_tokens_seen|num_tokens|train_.*|.*_runtime|.*_per_second")


def score_scatters(results: Results, table: AnswerTable) -> list[Plot]:
    """The first scorer against each of the others: one point a prompt, and each model's mean with its intervals.

    A second, independent score beside the reward model's is where reward hacking shows: to the right, but down.
    """
    first, *others = results.scorers
    return [_scatter(results, table, first, other) for other in others]


def _scatter(results: Results, table: AnswerTable, x_scorer: str, y_scorer: str) -> Plot:
    description = (
        f"{y_scorer} against {x_scorer}. Small: the mean of one prompt. Large: the model's mean with 95 % intervals. "
        "A model that moves right but down gains on one score at the other's cost."
    )
    labels = Labels()
    with drawing_style(f"scatter {x_scorer} {y_scorer}"):
        figure, (axes,) = new_axes(WIDTH_INCHES, 3.0)
        order = results.models_baseline_first
        for index, name in enumerate(order):
            x, y = (prompt_means(table.scores[name][scorer]) for scorer in (x_scorer, y_scorer))
            kept = _evenly(np.flatnonzero(np.isfinite(x) & np.isfinite(y)), MAX_POINTS_PER_MODEL)
            axes.plot(x[kept], y[kept], MARKERS[index % len(MARKERS)], color=model_color(index), ms=2.6, alpha=0.28, mew=0)
        for index, name in enumerate(order):
            x_score, y_score = (results.models[name].scores[scorer] for scorer in (x_scorer, y_scorer))
            axes.errorbar(
                [x_score.mean],
                [y_score.mean],
                xerr=[[x_score.mean - x_score.ci95[0]], [x_score.ci95[1] - x_score.mean]],
                yerr=[[y_score.mean - y_score.ci95[0]], [y_score.ci95[1] - y_score.mean]],
                fmt=MARKERS[index % len(MARKERS)],
                color=model_color(index),
                markeredgecolor=PANEL,
                markersize=5.5,
                elinewidth=1.6,
                zorder=10,
            )
        axes.set_xlabel(labels.token(x_scorer))
        axes.set_ylabel(labels.token(y_scorer))
        svg = to_svg(figure, labels, description)
    return Plot(f"{y_scorer} against {x_scorer}", description, svg, model_legend(results))


def model_legend(results: Results) -> list[Series]:
    """Every model with its colour, the same in every drawing."""
    return [Series(name, model_variable(index)) for index, name in enumerate(results.models_baseline_first)]


def score_histograms(results: Results, table: AnswerTable) -> list[Plot]:
    """The scores of all candidates, one drawing a scorer, one row a model."""
    plots = []
    for scorer in results.scorers:
        values = {name: table.scores[name][scorer].ravel() for name in results.models_baseline_first}
        description = f"Share of completions by {scorer} score. The line is the mean."
        plots.append(_histogram(f"Distribution of {scorer}", description, scorer, values))
    return plots


def length_histogram(results: Results, table: AnswerTable) -> Plot:
    """The lengths of all completions in tokens, one row a model."""
    values = {name: table.tokens[name].ravel() for name in results.models_baseline_first}
    description = "Share of completions by length. The line is the mean; a peak at the right end is what the token limit cut."
    return _histogram("Completion length", description, "tokens", values, whole_numbers=True)


def _histogram(
    title: str, description: str, x_label: str, values: Mapping[str, FloatArray], *, whole_numbers: bool = False
) -> Plot:
    finite = {name: array[np.isfinite(array)] for name, array in values.items()}
    edges = _bin_edges(np.concatenate(list(finite.values())), whole_numbers)
    labels = Labels()
    with drawing_style(title):
        figure, rows = new_axes(WIDTH_INCHES, 0.5 + 0.66 * len(values), len(values))
        for index, (name, array) in enumerate(finite.items()):
            axes = rows[index]
            shares = np.histogram(array, edges)[0] / max(1, len(array))
            axes.stairs(shares, edges, fill=True, color=model_color(index), alpha=0.32)
            axes.stairs(shares, edges, color=model_color(index), linewidth=1.2)
            if len(array):
                axes.axvline(float(array.mean()), color=INK, linewidth=1.1)
            axes.text(0.0, 1.02, labels.token(name), transform=axes.transAxes, color=INK, fontsize=8.5)
            axes.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
            axes.set_ylim(bottom=0)
            axes.spines["left"].set_visible(False)
        rows[-1].set_xlabel(labels.token(x_label))
        svg = to_svg(figure, labels, description)
    return Plot(title, description, svg)


def _bin_edges(values: FloatArray, whole_numbers: bool) -> FloatArray:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if whole_numbers:
        step = max(1, math.ceil((high - low + 1) / HISTOGRAM_BINS))
        return np.arange(low - 0.5, high + step + 0.5, step, dtype=np.float64)
    if high - low <= 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, HISTOGRAM_BINS + 1)


def training_curves(stage: str, curve: Curve) -> list[Plot]:
    """Every metric that a stage's trainer logged at two steps or more.

    Args:
        stage: name of the stage.
        curve: the trainer's log: dicts with `step` and any metrics. `eval_x` is drawn into x's plot, and `x/chosen` and
            `x/rejected` share one.
    """
    points = _points_by_metric(curve)
    groups: dict[str, list[str]] = {}
    for metric in points:
        groups.setdefault(_group(metric), []).append(metric)
    plots = []
    for name in sorted(groups, key=lambda name: CURVES_FIRST.index(name) if name in CURVES_FIRST else len(CURVES_FIRST)):
        metrics = sorted(groups[name], key=lambda metric: (metric.startswith("eval_"), metric))
        plots.append(_curve_plot(stage, name, {metric: points[metric] for metric in metrics}))
    return plots


def _group(metric: str) -> str:
    base = metric.removeprefix("eval_")
    return base.removesuffix("/chosen").removesuffix("/rejected")


def _points_by_metric(curve: Curve) -> Points:
    series: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(curve):
        step = float(row["step"]) if "step" in row else float(number)
        for metric, value in row.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and math.isfinite(value) and not NOT_A_CURVE.fullmatch(metric.removeprefix("eval_")):
                series.setdefault(metric, []).append((step, float(value)))
    points: Points = {}
    for metric, pairs in series.items():
        if len(pairs) > 1:
            kept = _evenly(np.arange(len(pairs)), MAX_POINTS_PER_CURVE)
            steps, values = np.array(pairs, dtype=np.float64)[kept].T
            points[metric] = (steps, values)
    return points


def _curve_plot(stage: str, group: str, points: Points) -> Plot:
    description = f"{', '.join(points)} of {stage} by optimizer step."
    legend = []
    labels = Labels()
    with drawing_style(f"{stage} {group}"):
        figure, (axes,) = new_axes(3.3, 1.75)
        for metric, (steps, values) in points.items():
            color = 2 if metric.endswith("/rejected") else 1
            dashed = metric.startswith("eval_")
            few = "o" if len(steps) < 12 else ""
            axes.plot(steps, values, color=model_color(color), linewidth=1.5, linestyle="--" if dashed else "-", marker=few, ms=3)
            legend.append(Series(metric, model_variable(color), dashed))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.grid(False)
        axes.margins(x=0.01)
        axes.tick_params(labelcolor=MUTED, color=GRID)
        svg = to_svg(figure, labels, description)
    return Plot(group, description, svg, [] if list(points) == [group] else legend)


def _evenly(indices: Any, count: int) -> Any:
    """At most `count` of the indices, evenly spaced, with the first and the last."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]
