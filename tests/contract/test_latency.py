"""Help, completion and mistakes are quick: in CPU seconds, as multiples of what importing pydantic and Typer takes here.

scripts/benchmarks/cli_latency.py prints the seconds.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

REPEATS = 5
LIBRARIES: tuple[str, ...] = (sys.executable, "-c", "from pydantic import BaseModel, TypeAdapter\nimport typer.main")
ALIGN = (sys.executable, "-m", "align.cli.main")
TAB = {"_ALIGN_COMPLETE": "complete_bash", "COMP_WORDS": "align plan quickstart --only ", "COMP_CWORD": "4"}


class Case(NamedTuple):
    """A command, and how many times as long as the libraries it may take."""

    arguments: tuple[str, ...]
    most: float
    exit_code: int = 0
    environment: Mapping[str, str] = MappingProxyType({})


CASES = {
    "help": Case(("--help",), 1.2),
    "completion of a stage": Case((), 1.7, environment=TAB),
    # 3.7 to 4.1 alone, and beside two busy processes on two cores.
    "mistake": Case(("plan", "quickstart", "--set", "stages.sft.learning_rat=1"), 4.5, exit_code=2),
}


def cpu_seconds(command: tuple[str, ...], exit_code: int, folder: Path, environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == exit_code, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_completion_and_mistakes_take_little_more_than_the_libraries(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    commands = {"libraries": (LIBRARIES, 0, environment)}
    for name, case in CASES.items():
        commands[name] = ((*ALIGN, *case.arguments), case.exit_code, environment | dict(case.environment))
    # The first call of each writes byte code, as a user's first call does. Cases take turns, so that other work slows all alike.
    rounds = [
        {name: cpu_seconds(command, code, tmp_path, variables) for name, (command, code, variables) in commands.items()}
        for _ in range(1 + REPEATS)
    ]
    # Of each round, because the quickest of all rounds may be one command's luck.
    shares = {name: median(measured[name] / measured["libraries"] for measured in rounds[1:]) for name in CASES}
    print({name: f"{min(measured[name] for measured in rounds[1:]):.2f} s" for name in commands}, shares)
    assert {name: share for name, share in shares.items() if share > CASES[name].most} == {}
