"""What a plan says of a job before it is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from align.config.machine_file import MachineFile
from align.config.recipe import Recipe
from align.errors import EnvironmentProblem, RecipeError
from align.pipeline.checks.plan import checked_plan
from align.pipeline.estimate.machine import read_machine
from align.pipeline.launch.job import settings_for
from align.pipeline.plan import Plan
from align.training.needs import Trains


def check_job(recipe: Recipe, out: Path, machine_file: MachineFile, *, nodes: int, gpus: int, quick: bool) -> list[str]:
    """Sentences on what is worth knowing before the job runs.

    Args:
        machine_file: for one node.
        gpus: of each node; what is visible on this machine does not matter.
        quick: do not look into rows and models.
    Raises:
        RecipeError, DataError, EnvironmentProblem: what stands in the way, as `align plan` says it.
    """
    if nodes > 1 and importlib.util.find_spec("ray") is None:
        raise EnvironmentProblem(
            f"--nodes {nodes} needs Ray, which is not installed in this environment", hint="pip install 'align-llm[ray]'"
        )
    if (wanted := machine_file.settings.training.nodes) > nodes:
        raise RecipeError(
            f"{machine_file.where('training', 'nodes')}: {wanted}, but the job has {nodes} node{'' if nodes == 1 else 's'}",
            hint=f"Ask for --nodes {wanted}, or leave it out: all nodes of the job train.",
        )
    each = machine_file.settings.sampling.tensor_parallel
    if each > max(gpus, 1):
        raise RecipeError(
            f"{machine_file.where('sampling', 'tensor_parallel')}: an engine of {each} GPUs, but each node has {gpus}",
            hint="An engine does not reach over several nodes. Ask for more --gpus, or write a smaller number.",
        )
    # The devices are those of a node; how large their memory is, this machine does not know.
    here = read_machine(out)
    node = replace(here, num_gpus=gpus, device="cuda" if gpus else "cpu")
    settings = settings_for(machine_file.settings, nodes=nodes, gpus=gpus)
    plan, findings = checked_plan(
        recipe, out, quick=quick, machine=node, sizes_only=True, machine_file=replace(machine_file, settings=settings)
    )
    return [*_notes(plan, nodes, gpus), *(f"{finding.name}: {finding.sentence}" for finding in findings)]


def _notes(plan: Plan, nodes: int, gpus: int) -> Iterator[str]:
    to_run = [stage for stage in plan.stages if stage.status == "run"]
    if not to_run:
        yield "Every stage is finished: the job would only show the results."
    trainings = [stage for stage in to_run if isinstance(stage.node.config, Trains)]
    together = plan.machine_file.settings.training.nodes
    if nodes > 1 and together == 1 and trainings:
        devices = f"its {gpus} GPUs" if gpus > 1 else "its GPU" if gpus else "its CPU"
        names = ", ".join(stage.name for stage in trainings)
        yield (
            f"{names}: training runs on the first node alone, on {devices}. Sampling and scoring run on all "
            f"{nodes} nodes; the GPUs of the others wait meanwhile."
        )
    elif 1 < together < nodes:
        yield f"Training runs on {together} of the {nodes} nodes, by the machine file; the others wait meanwhile."
    elif nodes > 1 and not trainings and not any(hasattr(stage.node.config, "num_workers") for stage in to_run):
        yield f"No stage that will run samples or scores: {nodes - 1} of the {nodes} nodes would do nothing."
