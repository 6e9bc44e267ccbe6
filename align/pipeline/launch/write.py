"""Writes the script of a job and its machine file, and never over what somebody has edited."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, TemplateError

from align import templates
from align.errors import RecipeError
from align.pipeline.launch.job import (
    MACHINE_FILE_NAME,
    PROJECT_FOLDER,
    Job,
    System,
    machine_text,
    refuse_unfit,
    refuse_unwritable,
)
from align.system_errors import writing_to

SCRIPTS: dict[System, str] = {
    "slurm": "job.sh",
    "kubernetes": "job.yaml",
    "dstack": "task.dstack.yml",  # dstack asks for this ending
    "skypilot": "task.yaml",
}
"""Name of the script or manifest."""
TEMPLATES: dict[System, str] = {
    "slurm": "slurm.sh.jinja",
    "kubernetes": "kubernetes.yaml.jinja",
    "dstack": "dstack.yaml.jinja",
    "skypilot": "skypilot.yaml.jinja",
}
SUBMIT: dict[System, tuple[str, ...]] = {
    "slurm": ("sbatch",),
    "kubernetes": ("kubectl", "create", "-f"),
    "dstack": ("dstack", "apply", "--yes", "--detach", "-f"),
    "skypilot": ("sky", "jobs", "launch", "--yes", "--detach-run"),
}
"""Commands that submit a script, without its path. They ask nothing: the user has said --submit, or types them."""
NAME_CHARACTERS = 40
"""Of a job, for the strictest system, dstack."""
WRITTEN_NAME = ".written.json"
"""SHA-256 of each file as align wrote it."""
WARNING_SECONDS = 300
"""Before its time limit, a job is told to write a checkpoint."""


@dataclass(frozen=True)
class Launch:
    """A script that was written."""

    script: Path
    machine_file: Path
    submit: tuple[str, ...]
    """The command that submits it."""


def write_job(job: Job, template: Path | None = None) -> Launch:
    """Write script and machine file into `job.here`.

    Args:
        template: in place of the one that comes with align.
    Raises:
        RecipeError: if a file there was edited, the template is wrong, or a path cannot be written into a script.
        EnvironmentProblem: if nothing can be written there.
    """
    refuse_unfit(job)
    refuse_unwritable([job.folder, job.here, job.programs])
    script = job.here / SCRIPTS[job.system]
    submit = (*SUBMIT[job.system], os.path.relpath(script, job.folder))
    texts = {script.name: render(job, template), MACHINE_FILE_NAME: machine_text(job.settings)}
    with writing_to(job.here):
        _refuse_edited(job.here, texts, submit)
        job.logs.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (job.here / name).write_text(text, encoding="utf-8")
        digests = {name: _digest(text.encode()) for name, text in texts.items()}
        (job.here / WRITTEN_NAME).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    return Launch(script, job.machine_file, submit)


def render(job: Job, template: Path | None = None) -> str:
    """The script.

    Raises:
        RecipeError: if the template cannot be read, or is wrong, with its line.
    """
    folder = Path(__file__).parent if template is None else template.parent
    name = TEMPLATES[job.system] if template is None else template.name
    try:
        return _environment(folder).get_template(name).render(
            job=job, warning_seconds=WARNING_SECONDS, machine_file_name=MACHINE_FILE_NAME,
            project_folder=PROJECT_FOLDER, container_script=container_script(job),
        )  # fmt: skip
    except (TemplateError, OSError, UnicodeDecodeError, TypeError, ValueError) as error:
        if template is None:
            raise
        line = getattr(error, "lineno", None) or _line_of(error, name)
        place = f"{template}:{line}" if line else str(template)
        reason = "there is no such template" if not template.is_file() else f"{error}"
        raise RecipeError(
            f"{place}: {reason}", hint="A template gets `job`; `align docs launch` lists what it has."
        ) from error  # fmt: skip


def container_script(job: Job) -> str:
    """What a container runs: it has no file of this machine, so that the machine file is in the script."""
    machine = f"/tmp/align-{MACHINE_FILE_NAME}"
    text = machine_text(job.settings)
    # The container's first process is align itself, which gets SIGTERM.
    return f"set -eu\ncd {PROJECT_FOLDER}\ncat >{machine} <<'END'\n{text}END\nexec {shlex.join(job.command)} --machine {machine}"


def _line_of(error: BaseException, name: str) -> int | None:
    """The line of a template that raised an error while it was rendered."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == name:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _environment(folder: Path) -> Environment:
    made = templates.environment(folder, autoescape=False, sandboxed=True)
    filters: dict[str, Callable[..., str]] = {
        "quote": _quote,
        "command": _command,
        "slurm_time": _slurm_time,
        "yaml": json.dumps,
        "dns_name": dns_name,
    }
    made.filters |= filters
    return made


def dns_name(name: str) -> str:
    """A name as Kubernetes, dstack and SkyPilot all take it: small letters, digits and single hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"align-{plain}")[:NAME_CHARACTERS].strip("-")


def _quote(value: object) -> str:
    return shlex.quote(str(value))


def _command(arguments: Iterable[str]) -> str:
    return shlex.join(arguments)


def _slurm_time(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    return f"{days}-{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def _refuse_edited(folder: Path, texts: Mapping[str, str], submit: tuple[str, ...]) -> None:
    try:
        written = json.loads((folder / WRITTEN_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        written = {}
    if not isinstance(written, dict):  # damaged: nothing is known of the files
        written = {}
    for name, text in texts.items():
        path = folder / name
        if not path.exists():
            continue
        found = _digest(path.read_bytes())
        if found not in (written.get(name), _digest(text.encode())):
            raise RecipeError(
                f"{path}: is not as align wrote it, and is not overwritten",
                hint=f"To submit it as it is: {shlex.join(submit)}\nElse remove it, or name another folder with --write DIR.",
            )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
