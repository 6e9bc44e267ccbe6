"""What a job on a cluster is: how many nodes and devices it gets, and the command that it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from align.config.machine import MachineSettings
from align.errors import RecipeError

System = Literal["slurm", "kubernetes", "dstack", "skypilot"]
MACHINE_FILE_NAME = "machine.yaml"
KEPT_VARIABLES = ("HF_HUB_OFFLINE",)
"""Set in the job as they are here. A script never has other variables: they may hold secrets."""
PROJECT_FOLDER = "/project"
"""Where a container has the volume with the user's files."""
SECONDS_OF = {"d": 86_400, "h": 3_600, "m": 60}
PLAIN_PATH = re.compile(r"[\w./+:@=, -]+")
"""Paths that mean the same to a shell in quotes, to sbatch, and in YAML."""


@dataclass(frozen=True)
class Job:
    """What a template is given, under the name `job`. Paths are absolute but for those in `command`."""

    system: System
    name: str
    """Of the recipe."""
    nodes: int
    gpus: int
    """Of each node."""
    folder: Path
    """Where the command runs: the one from which `align launch` was called."""
    here: Path
    """Where the script and the machine file are written."""
    recipe: str
    """As it was named on the command line; relative to `folder`."""
    options: tuple[str, ...]
    """Of `align run`, without --machine."""
    settings: MachineSettings
    """How the work is spread; see `settings_for`."""
    cpus: int | None = None
    """Of each node; None: what the cluster gives."""
    seconds: int | None = None
    """Time limit; None: the cluster's own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set for the command."""
    image: str | None = None
    """Container image that has align."""
    volume: str | None = None
    """What has the files of `folder`, for a container."""
    gpu_type: str | None = None
    """Name of the GPU, such as H100."""

    @property
    def programs(self) -> Path:
        """The folder of the commands `align`, `ray` and `python` of this environment."""
        return Path(sys.executable).parent

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.here / "logs"

    @property
    def machine_file(self) -> Path:
        """The machine file of the job."""
        return self.here / MACHINE_FILE_NAME

    @property
    def command(self) -> tuple[str, ...]:
        """`align run RECIPE …` without --machine."""
        return ("align", "run", self.recipe, *self.options)


def read_time(text: str) -> int:
    """Seconds of a time limit: 12h, 90m, 2d, or as Slurm writes it, 12:00:00 and 1-12:00:00.

    Raises:
        RecipeError: if it is none of these, or nothing.
    """
    short = re.fullmatch(r"(\d+)([dhm])", text)
    long = re.fullmatch(r"(?:(\d+)-)?(\d{1,2}):(\d\d):(\d\d)", text)
    seconds = 0
    if short:
        seconds = int(short[1]) * SECONDS_OF[short[2]]
    elif long:
        days, hours, minutes, rest = (int(part or 0) for part in long.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if seconds == 0:
        raise RecipeError(f"--time {text}: expected a time limit", hint="Such as 12h, 90m, 2d, 12:00:00 or 1-12:00:00.")
    return seconds


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that the job sets."""
    return {name: environment[name] for name in KEPT_VARIABLES if name in environment}


def settings_for(given: MachineSettings, *, nodes: int, gpus: int) -> MachineSettings:
    """How the work is spread over the nodes.

    On several, all of them train, unless the file says how many; Ray spreads sampling and scoring, with an engine for each group
    of GPUs.

    Args:
        given: of the machine file, for one node.
        gpus: of each node.
    """
    if nodes == 1:
        return given
    sampling: dict[str, Any] = {"pool": "ray"}
    if given.sampling.engines == "auto":
        sampling["engines"] = nodes * max(1, gpus // given.sampling.tensor_parallel)
    training: dict[str, Any] = {}
    if given.training.strategy != "single" and "nodes" not in given.training.model_fields_set:
        training["nodes"] = nodes
        if given.training.processes == "auto":
            training["processes"] = max(1, gpus)
    spread = given.sampling.model_copy(update=sampling)
    # The address of the first node is known once the job runs; the script writes it.
    ray = given.ray.model_copy(update={"address": "auto"})
    return given.model_copy(update={"training": given.training.model_copy(update=training), "sampling": spread, "ray": ray})


def machine_text(settings: MachineSettings) -> str:
    """A machine file with every setting that has a value."""
    lines = ["# Written by align launch; see `align docs launch`."]
    for section, value in settings.model_dump().items():
        lines += [f"{section}:", *(f"  {key}: {item}" for key, item in value.items() if item is not None)]
    return "\n".join(lines) + "\n"


def refuse_unfit(job: Job) -> None:
    """Refuse what a system does not have, and what it lacks.

    Raises:
        RecipeError: naming the option.
    """
    given = {"--image": job.image, "--volume": job.volume, "--gpu-type": job.gpu_type, "--time": job.seconds}
    in_container = job.system != "slurm"
    if not in_container:
        unused = ["--image", "--volume", "--gpu-type"]
    else:
        unused = ["--time"] + (["--gpu-type"] if job.system == "kubernetes" or not job.gpus else [])
    for option in unused:
        if given[option] is not None:
            raise RecipeError(f"{option}: has no meaning for {job.system}", hint="Leave it out, or use a --template of your own.")
    if not in_container:
        return
    needed = ["--image", "--volume"] + (["--gpu-type"] if job.system == "skypilot" and job.gpus else [])
    if missing := [option for option in needed if given[option] is None]:
        raise RecipeError(f"--on {job.system}: needs {' and '.join(missing)}", hint="See `align docs launch`.")
    if job.nodes > 1:
        raise RecipeError(
            f"--nodes {job.nodes}: align starts nothing on several nodes of {job.system}",
            hint="Start a Ray cluster there, write its address into the machine file (`align docs scale`), and use --nodes 1.",
        )
    if Path(job.recipe).is_absolute() or ".." in Path(job.recipe).parts:
        raise RecipeError(
            f"{job.recipe}: a container has only what is below {job.folder}",
            hint="Call align launch from the folder that the volume has, with a path from there.",
        )


def refuse_unwritable(paths: Sequence[Path | str]) -> None:
    """Refuse paths that a script or a manifest would have to disguise.

    Raises:
        RecipeError: naming the first one.
    """
    for path in map(str, paths):
        if not PLAIN_PATH.fullmatch(path):
            raise RecipeError(
                f"{path!r}: a job's script cannot name this path",
                hint="Letters, digits, spaces and . _ - + : @ = , / are possible. Rename the folder, or call align from another.",
            )
