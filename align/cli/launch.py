"""`align launch`: a recipe as a job of a cluster."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from align.cli.options import JsonOption, MachineOption, OutOption, RecipeArgument, SetOption, print_json
from align.cli.run import DEFAULT_OUT, QuickOption

DEFAULT_FOLDER = "launch"


def launch(
    recipe: RecipeArgument,
    on: Annotated[Literal["slurm", "kubernetes", "dstack", "skypilot"], typer.Option("--on", help="What runs the job.")],
    nodes: Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, metavar="G", help="GPUs of each.")] = 1,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, metavar="C", help="CPU cores of each.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Time limit of an attempt: 12h, 2d, or 1-12:00:00.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="Container image that has align; not for slurm.")
    ] = None,
    volume: Annotated[
        str | None, typer.Option("--volume", metavar="NAME", help="Volume that has this folder's files; not for slurm.")
    ] = None,
    gpu_type: Annotated[
        str | None, typer.Option("--gpu-type", metavar="NAME", help="Such as H100; for skypilot and dstack.")
    ] = None,
    out: OutOption = DEFAULT_OUT,
    set_: SetOption = None,
    machine: MachineOption = None,
    template: Annotated[
        Path | None, typer.Option("--template", metavar="FILE", help="A Jinja template of your own for the script.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="DIR", help="Folder for script and logs. Default: launch/<recipe's name>.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit the job too.")] = False,
    quick: QuickOption = False,
    json: JsonOption = False,
) -> None:
    """Write the script with which a cluster runs a recipe.

    The recipe is checked as `align plan` does.

    Nothing is submitted without --submit. A script that you have edited is never overwritten.
    """
    from align.config.machine_file import read_machine_settings
    from align.pipeline.launch.job import Job, kept_environment, read_time, refuse_unfit, settings_for
    from align.pipeline.recipe import load_recipe

    seconds = None if time is None else read_time(time)
    loaded = load_recipe(recipe, set_ or ())  # before the slow import, so that mistakes show at once
    machine_file = read_machine_settings(machine, loaded.folder, os.environ)

    from align.pipeline.launch.check import check_job
    from align.pipeline.launch.submit import submit as submit_job
    from align.pipeline.launch.write import write_job

    folder = Path.cwd()
    job = Job(
        system=on,
        name=loaded.name,
        nodes=nodes,
        gpus=gpus,
        folder=folder,
        here=folder / (write or Path(DEFAULT_FOLDER, loaded.name)).expanduser(),
        recipe=str(recipe),
        options=("--out", str(out), *(part for value in set_ or () for part in ("--set", value))),
        settings=settings_for(machine_file.settings, nodes=nodes, gpus=gpus),
        cpus=cpus,
        seconds=seconds,
        environment=kept_environment(os.environ),
        image=image,
        volume=volume,
        gpu_type=gpu_type,
    )
    refuse_unfit(job)
    notes = check_job(loaded, out, machine_file, nodes=nodes, gpus=gpus, quick=quick)
    written = write_job(job, template)
    for note in notes:
        print(note, file=sys.stderr)
    answer = submit_job(written, folder) if submit else None
    if json:
        print_json(
            {
                "script": str(written.script),
                "machine_file": str(written.machine_file),
                "submit": list(written.submit),
                "submitted": answer,
                "notes": notes,
            }
        )
    else:
        print(f"Written: {written.script}")
        print(f"Submit it: {shlex.join(written.submit)}" if answer is None else answer)
