"""Training curves: every metric that a stage logged, and drawings that combine several of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from align.metric import metric_of
from align.report.figure import GRID, INK, MUTED, Plot, Series, draw, evenly, model_color, model_variable
from align.report.statistics import FloatArray

MAX_POINTS_PER_CURVE = 400
FEW_POINTS = 12  # from here on a line without markers reads better
SMOOTHED_SHARE = 0.05
WIDTH_INCHES, HEIGHT_INCHES = 3.3, 1.75

Curve = Sequence[Mapping[str, Any]]
Points = dict[str, tuple[FloatArray, FloatArray]]

PROXY = "objective/scores"
WATCHED_PREFIX = "objective/scores/"

# Shown first, in this order; any other metric follows in the order it was logged.
CURVES_FIRST = (
    "loss",
    PROXY,
    "objective/scores_std",
    "objective/kl",
    "objective/kl_coef",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "teacher/kl",
    "teacher/agreement",
    "objective/entropy",
    "zero_variance_groups",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/explained_var",
    "rollout/completion_tokens",
    "rollout/eos_share",
    "rollout/sampler_gap",
    "rollout/sampler_gap_max",
    "rewards/accuracies",
    "rewards/margins",
    "rewards",
    "logps",
)
# Settings and health of the optimizer rather than results: shown after everything else.
CURVES_LAST = ("lr", "learning_rate", "grad_norm", "eps")
# Counters, totals that the trainer logs once at the end, and clocks: no curve of training.
NOT_A_CURVE = re.compile(
    r"step|epoch|episode|rollout/weights_version|total_flos|num_input_tokens_seen|num_tokens|train_.*|.*_runtime|.*_per_second"
)


def training_curves(stage: str, curve: Curve, *, selected_epoch: float | None = None) -> list[Plot]:
    """Every metric that a stage logged at two steps or more. Drawings that combine several metrics come first.

    Args:
        stage: name of the stage.
        curve: its log: dicts with `step` and any metrics. `eval_x` is drawn into x's plot, `x/chosen` and `x/rejected` share one,
            and `objective/scores/<scorer>`, scores that were watched but not optimised, are drawn beside `objective/scores` in
            one picture. A log of `score` and `eval_loss` by epoch, as the choice of a checkpoint makes it, is one picture.
        selected_epoch: the epoch that was chosen, marked in that picture.
    """
    points = _points_by_metric(curve)
    plots = []
    # A trainer's log has "loss"; only the choice of a checkpoint logs a score without it.
    if "score" in points and "loss" not in points and ("eval_loss" in points or selected_epoch is not None):
        plots.append(_checkpoint_plot(stage, points, selected_epoch))
        # Drawn together above, so not once more as curves of their own.
        points = {metric: values for metric, values in points.items() if metric not in ("score", "eval_loss")}
    watched = {metric: values for metric, values in points.items() if metric.startswith(WATCHED_PREFIX)}
    if PROXY in points and watched:
        plots.append(_hacking_plot(stage, {PROXY: points[PROXY], **watched}))
    groups: dict[str, list[str]] = {}
    for metric in points:
        groups.setdefault(_group(metric), []).append(metric)
    for name in sorted(groups, key=_place):
        # Training before validation, and chosen before rejected.
        metrics = sorted(groups[name], key=lambda metric: (metric.startswith("eval_"), metric))
        plots.append(_curve_plot(stage, name, {metric: points[metric] for metric in metrics}))
    return plots


def _place(group: str) -> int:
    if group in CURVES_LAST:
        return len(CURVES_FIRST) + 1 + CURVES_LAST.index(group)
    first = PROXY if group.startswith(WATCHED_PREFIX) else group
    return CURVES_FIRST.index(first) if first in CURVES_FIRST else len(CURVES_FIRST)


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
        # A single point is no curve.
        if len(pairs) > 1:
            kept = evenly(np.arange(len(pairs)), MAX_POINTS_PER_CURVE)
            steps, values = np.array(pairs, dtype=np.float64)[kept].T
            points[metric] = (steps, values)
    return points


def _curve_plot(stage: str, group: str, points: Points) -> Plot:
    description = f"{stage}: {', '.join(metric_of(metric).words for metric in points)} by optimizer step."
    with draw(group, description, WIDTH_INCHES, HEIGHT_INCHES, salt=f"{stage} {group}") as plot:
        for metric, (steps, values) in points.items():
            color = 2 if metric.endswith("/rejected") else 1
            dashed = metric.startswith("eval_")
            _line(plot.axes[0], steps, values, color, dashed=dashed)
            plot.legend += [] if list(points) == [group] else [Series(metric_of(metric).words, model_variable(color), dashed)]
        _finish_axes(plot.axes[0])
    return plot


def _line(axes: Axes, steps: FloatArray, values: FloatArray, color: int, *, dashed: bool = False) -> None:
    few = "o" if len(steps) < FEW_POINTS else ""
    axes.plot(steps, values, color=model_color(color), linewidth=1.5, linestyle="--" if dashed else "-", marker=few, ms=3)


def _finish_axes(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.grid(False)
    axes.margins(x=0.01)
    axes.tick_params(labelcolor=MUTED, color=GRID)


def _hacking_plot(stage: str, points: Points) -> Plot:
    """The optimised score (first) and the watched ones on one scale. Where they part, the policy only exploits the scorer.

    Scores have different units, so each is drawn as its change since the start in units of its own standard deviation over the
    run: a common scale that has no second axis to misread.
    """
    description = (
        f"{stage}: the optimised score (solid) and the watched ones (dashed), smoothed, as change since the start in standard "
        "deviations of each. Optimised score up, watched score down: reward hacking."
    )
    title = "optimised and watched scores"
    with draw(title, description, WIDTH_INCHES, HEIGHT_INCHES, salt=f"{stage} hacking") as plot:
        (axes,) = plot.axes
        axes.axhline(0.0, color=MUTED, linewidth=0.8)
        for color, (metric, (steps, values)) in enumerate(points.items(), start=1):
            _line(axes, steps, _standardised(values), color, dashed=metric != PROXY)
            name = "optimised score" if metric == PROXY else f"{metric.removeprefix(WATCHED_PREFIX)} (watched)"
            plot.legend.append(Series(name, model_variable(color), dashed=metric != PROXY))
        _finish_axes(axes)
        axes.set_ylabel("change (std. dev.)")
    return plot


def _standardised(values: FloatArray) -> FloatArray:
    """Change of a moving mean since its start, in standard deviations of the values; zeros for a constant."""
    window = max(1, round(SMOOTHED_SHARE * len(values)))
    # Means of the last `window` values as differences of running sums: linear in the number of steps.
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    smooth = (sums[ends] - sums[starts]) / (ends - starts)
    spread = float(values.std())
    # Below this the spread is rounding, which must not be blown up to a curve.
    if spread <= 1e-12 * float(np.abs(values).max(initial=0.0)):
        return np.zeros(len(values))
    # The start is the first mean over a whole window; the means before it are noisier.
    change: FloatArray = (smooth - smooth[min(window, len(values)) - 1]) / spread
    return change


def _checkpoint_plot(stage: str, points: Points, selected_epoch: float | None) -> Plot:
    """Score and, where it was measured, validation loss by epoch, each on an axis of its own."""
    description = f"{stage}: score of the completions on validation prompts (left axis, solid) by epoch."
    title = "score and validation loss by epoch"
    with draw(title, description, WIDTH_INCHES, HEIGHT_INCHES, salt=f"{stage} checkpoints") as plot:
        (axes,), plot.legend = plot.axes, [Series("score (left)", model_variable(1))]
        _line(axes, *points["score"], 1)
        _finish_axes(axes)
        axes.set_xlabel("epoch")
        if "eval_loss" in points:
            plot.description += " Right axis, dashed: validation loss."
            plot.description += " The epoch with the lowest loss need not have the best score."
            plot.legend.append(Series("validation loss (right)", model_variable(2), dashed=True))
            right = axes.twinx()
            _line(right, *points["eval_loss"], 2, dashed=True)
            _finish_axes(right)
            right.grid(False)
            axes.tick_params(axis="y", labelcolor=model_color(1))
            right.tick_params(axis="y", labelcolor=model_color(2))
        if selected_epoch is not None:
            plot.description += f" The line marks epoch {selected_epoch:g}, which was selected by its score."
            plot.legend.append(Series(f"selected: epoch {selected_epoch:g}", "--ink"))
            axes.axvline(selected_epoch, color=INK, linewidth=1.1)
    return plot
