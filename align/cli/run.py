"""`align run` and `align plan`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from align.cli.options import (
    FromOption,
    JsonOption,
    MachineOption,
    OnlyOption,
    OutOption,
    RecipeArgument,
    SetOption,
    UntilOption,
    output_console,
    print_json,
)
from align.errors import AlignError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align.config.machine_file import MachineFile
    from align.config.recipe import Recipe
    from align.pipeline.estimate.stage_time import StageTime
    from align.pipeline.plan import Plan
    from align.pipeline.run_result import RunResult

DEFAULT_OUT = Path("runs")
MemoryOption = Annotated[
    bool, typer.Option("--memory", help="Show memory and disk of every training stage for full fine-tuning, LoRA and QLoRA.")
]
InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="Run the stages in this process, for a debugger or a profiler.")
]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Say at the end where the time went.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Do not look into rows and models first.")]
STATUS_WORDS = {"cached": "done before", "run": "to run", "skipped": "left out"}


def run(
    context: typer.Context,
    recipe: RecipeArgument,
    out: OutOption = DEFAULT_OUT,
    set_: SetOption = None,
    only: OnlyOption = None,
    from_: FromOption = None,
    until: UntilOption = None,
    machine: MachineOption = None,
    in_process: InProcessOption = False,
    quick: QuickOption = False,
    profile: ProfileOption = False,
    json: JsonOption = False,
) -> None:
    """Run a recipe; finished stages do not run again.

    Prints the comparison of the models at the end. You can interrupt it at any time; the same command resumes the run.
    """
    from align.config.machine_file import read_machine_settings
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, set_ or ())
    run_and_print(
        loaded,
        out,
        machine_file=read_machine_settings(machine, loaded.folder, os.environ),
        command=context.obj,
        json=json,
        only=only,
        start=from_,
        until=until,
        in_process=in_process,
        quick=quick,
        profile=profile,
    )


def plan(
    recipe: RecipeArgument,
    out: OutOption = DEFAULT_OUT,
    set_: SetOption = None,
    only: OnlyOption = None,
    from_: FromOption = None,
    until: UntilOption = None,
    machine: MachineOption = None,
    memory: MemoryOption = False,
    quick: QuickOption = False,
    json: JsonOption = False,
) -> None:
    """Show what `align run` would do, why, and what training needs. Nothing runs.

    Looks into the first rows of each file, and at the tokenizer and chat template of each model, and refuses what cannot work.
    """
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, set_ or ())  # before the slow imports, so that mistakes show at once

    from align.config.machine_file import read_machine_settings

    machine_file = read_machine_settings(machine, loaded.folder, os.environ)

    from align.pipeline.beside import group_lines, groups_of, shares_of, side_by_side
    from align.pipeline.checks.machine import check_disk
    from align.pipeline.checks.plan import checked_plan
    from align.pipeline.estimate.machine import read_machine
    from align.pipeline.estimate.plan import estimate_plan
    from align.pipeline.estimate.rates import unusual_rates
    from align.pipeline.estimate.spread_view import spread_lines, stage_spreads, workers_of
    from align.pipeline.estimate.stage_time import stage_times, time_sentence
    from align.pipeline.estimate.table import render_estimates

    choice: dict[str, Any] = {"only": only, "start": from_, "until": until, "machine_file": machine_file}
    planned, findings = checked_plan(loaded, out, quick=quick, sizes_only=True, **choice)
    here = read_machine(planned.run_folder)
    groups = groups_of(planned, here)
    estimate, rates = estimate_plan(planned, here, shares_of(groups)), dict(unusual_rates(planned))
    times = stage_times(planned, estimate.machine, workers_of(planned, estimate))
    spreads, together = stage_spreads(planned, estimate), side_by_side(groups)
    findings += check_disk(loaded.name, estimate, (stage.name for stage in planned.stages if stage.status == "run"))
    if json:
        found = {
            "unusual_learning_rates": rates,
            "findings": [finding.to_json() for finding in findings],
            "time": [asdict(time) for time in times],
            "spread": [spread.to_json() for spread in spreads],
            "side_by_side": together,
        }
        print_json({**planned.to_json(), "memory": estimate.to_json(), **found})
    else:
        _print_plan(planned, times)
        if (sentence := time_sentence(times, together)) is not None:
            output_console().print(f"\n{sentence}")
        for reused in filter(None, (time.reused for time in times)):
            output_console().print(f"\n{reused}")
        for lines in (group_lines(groups), spread_lines(spreads, machine_file.source)):
            if lines:
                output_console().print("\n" + "\n".join(lines))
        for part in render_estimates(estimate, all_methods=memory):
            output_console().print()
            output_console().print(part)
        for name, resolved in planned.inputs.items():
            if resolved.model is not None and resolved.model.is_configuration_alone:
                output_console().print(f"\n{name}: no weights are here; its sizes are those of config.json")
        for stage, sentence in rates.items():
            output_console().print(f"\n{stage}: {sentence}")
        for finding in findings:
            output_console().print(f"\n{finding.name}: {finding.sentence}")


def run_and_print(
    recipe: Recipe,
    out: Path,
    *,
    machine_file: MachineFile,
    command: list[str],
    json: bool,
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    store: Path | None = None,
    in_process: bool = False,
    quick: bool = False,
    profile: bool = False,
) -> None:
    """Run a recipe with progress on stderr and the result on stdout."""
    from align.cli.ending import say_how_to_go_on
    from align.pipeline.run import run_recipe
    from align.progress.display import ProgressDisplay

    with ProgressDisplay(live=not in_process) as display:
        try:
            result = run_recipe(
                recipe,
                out,
                only=only,
                start=start,
                until=until,
                store=store,
                machine_file=machine_file,
                sinks=[display],
                command=command,
                in_process=in_process,
                quick=quick,
            )
        except AlignError as error:
            say_how_to_go_on(error, display.state, command)
            raise
    if json:
        print_json(result.to_json())
    else:
        _print_result(result)
        if profile and result.seconds is not None:
            from align.report.profile import profile_table

            output_console().print()
            output_console().print(profile_table(result.stages, result.seconds, result.overlap_seconds))


def _print_result(result: RunResult) -> None:
    from align.cli.ending import facts, next_commands, report_lines, stage_lines

    console, results = output_console(), None
    if result.comparisons:
        from align.report.results import Results
        from align.report.table import render_tables

        comparisons = {name: Results.from_json(value) for name, value in result.comparisons.items()}
        results = list(comparisons.values())[-1]
        console.print(render_tables(comparisons))
        console.print()
    else:
        for line in stage_lines(result):
            console.print(line)
    for line in facts(result):
        console.print(line)
    # Whole, however long: a path or a command is copied.
    for line in (*report_lines(result), *next_commands(result, results)):
        console.print(line, soft_wrap=True)


def _print_plan(planned: Plan, times: Sequence[StageTime]) -> None:
    from rich import box
    from rich.table import Table

    from align.metric import duration_text, left_text

    will_take = {time.name: left_text(time.seconds) for time in times if time.seconds}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("stage", "type", "status", "why", "time"):
        table.add_column(header, overflow="fold")
    for stage in planned.stages:
        took = will_take.get(stage.name, "") if stage.seconds is None else duration_text(stage.seconds)
        table.add_row(stage.name, stage.stage_type, STATUS_WORDS.get(stage.status, stage.status), stage.reason, took)
    output_console().print(table)
