"""Run or plan a recipe from Python."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.api.table import Table
from align.config.machine_file import MachineChoice, read_machine_settings
from align.config.recipe import Recipe
from align.errors import Interrupted, RecipeError
from align.pipeline.recipe import load_recipe

if TYPE_CHECKING:
    from align.api.run import Run
    from align.runtime.events import EventSink

AnyRecipe = str | Path | Recipe
Overrides = Mapping[str, Any] | Sequence[str]


def run_recipe(
    recipe: AnyRecipe,
    out: str | Path = "runs",
    *,
    overrides: Overrides = (),
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    progress: bool = True,
    in_process: bool = False,
    quick: bool = False,
    machine: MachineChoice = None,
    sinks: Sequence[EventSink] = (),
    command: Sequence[str] = (),
) -> Run:
    """Run every stage of a recipe that has no result yet, and return what the run made.

    Works in a script (with or without a `__main__` guard), in a notebook and at a prompt. Each stage runs in a process of its
    own. Ctrl-C stops the run at the next checkpoint, a second one at once; the same call goes on from there.

    Args:
        recipe: a recipe file or its folder, or what `load_recipe` returned.
        out: folder of all runs; this one is `out/<name of the recipe>`.
        overrides: values in place of those of the file, as `{"stages.dpo.dpo.beta": 0.2}`. Not for a loaded recipe.
        only: run this stage alone.
        start: run this stage and the stages that depend on it.
        until: run this stage and the stages it depends on.
        progress: show on stderr what happens.
        in_process: run the stages in this process, for a debugger or a profiler.
        quick: start without looking into rows and models first, as `--quick` does.
        machine: how the work is spread over devices: a machine file, or its content as a mapping. Default: the file that the
            environment variable ALIGN_MACHINE names, or `machine.yaml` in the recipe's folder.
        sinks: take every event of the run, in this thread.
        command: what is written into the comparison as the command of the run.
    Raises:
        RecipeError: if the recipe, the machine file, an override or the name of a stage is wrong; nothing was started.
        DataError: if a file of rows is wrong.
        EnvironmentProblem: if the machine lacks something.
        StageError: if a stage stopped before its end. The stages that are done are kept.
        KeyboardInterrupt: after Ctrl-C. The stages that are done are kept.
        Interrupted: after SIGTERM.
        StageBug: if a stage failed for a reason that is a bug of align; with `in_process`, the error itself.
    """
    from align.api.run import Run
    from align.pipeline.run import run_recipe as run_stages
    from align.progress.display import ProgressDisplay

    loaded = _loaded(recipe, overrides)
    display = ProgressDisplay(live=not in_process)
    with display if progress else contextlib.nullcontext():
        try:
            result = run_stages(
                loaded,
                Path(out).expanduser(),
                only=only,
                start=start,
                until=until,
                machine_file=read_machine_settings(machine, loaded.folder, os.environ),
                sinks=[*([display] if progress else []), *sinks],
                command=list(command),
                in_process=in_process,
                quick=quick,
            )
        except Interrupted as stopped:
            if stopped.signal_number != signal.SIGINT:
                raise
            # A loop over recipes that goes on after an AlignError must not go on after Ctrl-C.
            raise KeyboardInterrupt(f"{stopped.message} The same call goes on from here.") from None
    return Run(result.folder)


def plan(
    recipe: AnyRecipe,
    out: str | Path = "runs",
    *,
    overrides: Overrides = (),
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    quick: bool = False,
    machine: MachineChoice = None,
) -> Table:
    """What `run_recipe` would do: one row per stage with its name, type, status, and why it would run. Nothing runs.

    Args:
        recipe, out, overrides, only, start, until, quick, machine: as for `run_recipe`.
    Returns:
        status: `cached` (its result is there), `run` or `skipped`; seconds: how long a cached stage took.
    Raises:
        RecipeError, DataError, EnvironmentProblem: as `run_recipe`.
    """
    from align.pipeline.checks.plan import checked_plan

    loaded = _loaded(recipe, overrides)
    machine_file = read_machine_settings(machine, loaded.folder, os.environ)
    choice: dict[str, Any] = {"only": only, "start": start, "until": until, "machine_file": machine_file}
    planned, _ = checked_plan(loaded, Path(out).expanduser(), quick=quick, sizes_only=True, **choice)
    return Table.of(planned.to_json()["stages"])


def _loaded(recipe: AnyRecipe, overrides: Overrides) -> Recipe:
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides)
    if overrides:
        raise RecipeError("overrides: the recipe is loaded already", hint="Give them to load_recipe, or give its path here.")
    return recipe
