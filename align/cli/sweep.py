"""`align sweep`: the trials of a recipe's sweeps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from align.cli.options import JsonOption, OutOption, RecipeArgument, SetOption, output_console, print_json
from align.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from align.pipeline.sweep_state import SweepState, Trial

STATUS_WORDS = {"cached": "done", "run": "to run", "skipped": "left out"}
CHOSEN = "← chosen"
NOTHING = "–"


def sweep(
    context: typer.Context,
    recipe: RecipeArgument,
    out: OutOption = Path("runs"),
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Show the trials of a recipe's sweeps: settings, scores and cost.

    Scores are on the validation prompts of the sweep, with 95 % intervals. Nothing runs; `align run` does that.
    """
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, set_ or ())

    from align.pipeline.plan import make_plan
    from align.pipeline.sweep_state import sweep_states

    sweeps = list(sweep_states(make_plan(loaded, out, sizes_only=True)))
    if not sweeps:
        raise RecipeError(f"{loaded.path}: the recipe has no sweep", hint="`align docs sweep` shows how to write one.")
    if json:
        print_json({"recipe": loaded.name, "sweeps": [state.to_json() for state in sweeps]})
        return
    for number, state in enumerate(sweeps):
        output_console().print("\n" * bool(number), end="")
        _print(state, again=shlex.join(["align", "run", *context.obj[2:]]))


def _print(state: SweepState, *, again: str) -> None:
    console = output_console()
    count = f"{len(state.trials)} trial{'s' * (len(state.trials) != 1)}"
    console.print(f"Sweep of {state.stage}: {count}, chosen by {state.scorer} on the prompts {state.prompts}.\n")
    # One line for each trial where they fit.
    table = _table(state.trials, stacked=False)
    fits = console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width
    console.print(table if fits else _table(state.trials, stacked=True))
    chosen = next((trial for trial in state.trials if trial.chosen), None)
    if chosen is None:
        console.print(f"\nNo trial is chosen yet. To go on: {again}", soft_wrap=True)
        return
    others = [trial for trial in state.trials if not trial.chosen and trial.over_chosen]
    close = [trial.stage for trial in others if trial.over_chosen and trial.over_chosen["ci95"][1] >= 0]
    text = f"{state.stage} is the model of {chosen.stage}."
    if close:
        text += f" Not separated from it, as their interval of the difference contains 0: {', '.join(close)}."
    console.print(f"\n{text}")


def _table(trials: Sequence[Trial], *, stacked: bool) -> Table:
    """A row for each trial; stacked, with several lines for its settings and numbers."""
    from rich import box
    from rich.table import Table

    from align.config.trials import setting_text
    from align.metric import duration_text

    fields = list(trials[0].settings)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, leading=int(stacked))
    headers = (
        ("trial", "settings", "score, and to chosen", "took") if stacked else ("trial", *fields, "score", "to chosen", "took", "")
    )
    for header in headers:
        table.add_column(header, overflow="fold", justify="right" if header == "took" else "left")
    prompts = max((trial.prompts or 0 for trial in trials), default=0)
    for trial in trials:
        values = [setting_text(trial.settings[field]) for field in fields]
        left = f"left after {trial.prompts} prompts" if trial.prompts and trial.prompts < prompts else ""
        status = CHOSEN if trial.chosen else left or STATUS_WORDS[trial.status]
        score, difference = _interval(trial.score), NOTHING if trial.chosen else _interval(trial.over_chosen, signed=True)
        took = NOTHING if trial.seconds is None else duration_text(trial.seconds)
        if stacked:
            settings = "\n".join(f"{field}={value}" for field, value in zip(fields, values, strict=True))
            numbers = score if difference == NOTHING else f"{score}\n{difference}"
            table.add_row(f"{trial.stage}\n{status}", settings, numbers, took)
        else:
            table.add_row(trial.stage, *values, score, difference, took, status)
    return table


def _interval(numbers: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if numbers is None:
        return NOTHING
    sign = "+" if signed else ""
    low, high = numbers["ci95"]
    return f"{numbers['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
