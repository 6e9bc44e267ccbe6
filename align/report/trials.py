"""The trials of sweeps in the report: what each scored on the validation prompts, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from align.report.cost import Cost, model_costs, stage_costs
from align.report.estimate import Estimate
from align.report.figure import INK, MUTED, Plot, Series, draw, model_color, model_variable
from align.report.plots import WIDTH_INCHES, draw_cost_axis, ends, total_costs
from align.report.results import Results
from align.report.style import row_styles
from align.store.artifact import Artifact

MAX_SETTINGS = 12
"""With more trials, the legend does not list their settings."""


@dataclass(frozen=True)
class Trial:
    """A trained model that a choice was made among."""

    settings: str
    cost: Cost
    score: Estimate
    """On the validation prompts."""
    prompts: int
    """Validation prompts that it answered; fewer than others if it left in successive halving."""
    chosen: bool


def trials_of(choice: Artifact, artifacts: Sequence[Artifact]) -> list[Trial]:
    """The trials of a stage that chooses among models, in the order of the recipe; those whose cost is not known are left out.

    Args:
        choice: the result of a `select_model` stage.
        artifacts: everything that it was made from.
    """
    manifest = choice.manifest
    # By fingerprint, because the choice may be of another recipe's run, which has other names for the same results.
    names = {artifact.fingerprint: artifact.name for artifact in artifacts}
    fingerprints = {settings: manifest.inputs[name] for settings, name in manifest.config["models"].items()}
    made = {settings: names[found] for settings, found in fingerprints.items() if found in names}
    models = list(made.values())
    costs = model_costs(stage_costs(artifacts, models), models, models[0]) if models else {}
    trials = []
    for settings, name in made.items():
        numbers: dict[str, Any] = manifest.metrics["models"][settings]
        if name in costs:
            score = Estimate(mean=numbers["score"]["mean"], ci95=tuple(numbers["score"]["ci95"]))
            trials.append(Trial(settings, costs[name], score, numbers["prompts"], settings == manifest.metrics["selected"]))
    return trials


def trial_plots(results: Results, artifacts: Sequence[Artifact]) -> Iterator[Plot]:
    """A drawing per sweep: validation score against cost, one point per trial; none for fewer than two trials.

    They are apart from the held-out scores: a trial has no held-out score, and the chosen one's validation score flatters it.
    """
    choices = {artifact.fingerprint: artifact for artifact in artifacts if artifact.manifest.chosen_input is not None}
    for choice in choices.values():
        trials = trials_of(choice, artifacts)
        costs, in_flops = total_costs({trial.settings: trial.cost for trial in trials})
        if len(costs) > 1:
            yield _plot(results, choice, [trial for trial in trials if trial.settings in costs], costs, in_flops=in_flops)


def _plot(results: Results, choice: Artifact, trials: Sequence[Trial], costs: dict[str, float], *, in_flops: bool) -> Plot:
    most = max(trial.prompts for trial in trials)
    description = (
        f"Validation score against the cost of everything that a trial was made from, with 95 % intervals, on {most} prompts "
        f"({choice.manifest.config['prompts']}). {choice.name} is the best of {len(trials)} trials, so its score here flatters "
        "it: the other drawings have its held-out score."
    )
    if any(trial.prompts < most for trial in trials):
        description += " Fainter trials left early, after fewer prompts, and are not on the line."
    if len(trials) > MAX_SETTINGS:
        description += " `align sweep` lists the settings."
    row = next((name for name in results.models_baseline_first if choice.name in results.members(name)), None)
    style = row_styles(results)[row] if row else None
    color, variable = (style.color, style.variable) if style else (model_color(0), model_variable(0))
    with draw(f"Trials of {choice.name}", description, WIDTH_INCHES, 3.0, salt=f"trials {choice.name}") as plot:
        (axes,) = plot.axes
        for number, trial in enumerate(trials, start=1):
            x, y, marker = costs[trial.settings], trial.score.mean, "D" if trial.chosen else "o"
            axes.errorbar(
                [x],
                [y],
                yerr=ends(trial.score),
                fmt=marker,
                color=color if trial.chosen else MUTED,
                markersize=6.5 if trial.chosen else 4.5,
                elinewidth=1.1,
                alpha=1.0 if trial.prompts == most else 0.45,
                zorder=10 if trial.chosen else 5,
            )
            axes.annotate(str(number), (x, y), (5, 3), textcoords="offset points", color=INK, fontsize=7.5)
            if len(trials) <= MAX_SETTINGS or trial.chosen:
                label = f"{number}: {trial.settings}{' (chosen)' if trial.chosen else ''}"
                plot.legend.append(Series(label, variable if trial.chosen else "--muted", marker=marker))
        means = {trial.settings: trial.score.mean for trial in trials if trial.prompts == most}
        draw_cost_axis(axes, costs, means, in_flops=in_flops)
        axes.set_ylabel("validation score")
    return plot
