"""How long the command line takes to answer: help, completion, mistakes and a plan, each in a process of its own.

    python scripts/benchmarks/cli_latency.py

Prints medians and the longest; writes scripts/benchmarks/cli_latency.json. The mistakes are every 12th of
tests/contract/mistakes.yaml. CPU seconds are those of the process, user and system; wall seconds need a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.store.atomic import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).with_suffix(".json")
ALIGN = (sys.executable, "-c", "import sys, align_llm; sys.exit(align_llm.main())")
REPEATS = 3
EVERY = 12


class Call(NamedTuple):
    """A command, and what it is a case of."""

    case: str
    command: tuple[str, ...]
    recipe: str = ""
    """Content of `recipe.yaml` in the folder of the call."""
    environment: tuple[tuple[str, str], ...] = ()


def completion(case: str, words: str) -> Call:
    """What a shell runs when Tab is pressed after `words`."""
    set_ = (("_ALIGN_COMPLETE", "complete_bash"), ("COMP_WORDS", words), ("COMP_CWORD", str(len(words.split(" ")) - 1)))
    return Call(case, ALIGN, environment=set_)


def calls() -> Iterator[Call]:
    yield Call("python alone", (sys.executable, "-c", "pass"))
    yield Call("import of pydantic and typer", (sys.executable, "-c", "from pydantic import BaseModel\nimport typer.main"))
    yield Call("import align", (sys.executable, "-c", "import align"))
    yield Call("--version", (*ALIGN, "--version"))
    yield Call("--help", (*ALIGN, "--help"))
    yield Call("plan --help", (*ALIGN, "plan", "--help"))
    yield Call("stage dpo --help", (*ALIGN, "stage", "dpo", "--help"))
    yield completion("completion of a command", "align pl")
    yield completion("completion of a stage", "align plan dpo-vs-rejection-sampling --only s")
    yield completion("completion of a stage with rounds", "align plan quickstart --only s")
    yield from mistaken()
    yield Call("plan quickstart", (*ALIGN, "plan", "quickstart"))


def mistaken() -> Iterator[Call]:
    from test_mistakes import TABLES, mistakes  # type: ignore[import-not-found]

    for mistake in [mistake for table in TABLES for mistake in mistakes(table)][::EVERY]:
        given = ["plan", "recipe.yaml"]
        case = "mistake in a recipe"
        if mistake.kind == "set":
            given, case = [*given, "--set", mistake.written], "mistake in --set"
        elif mistake.kind == "command":
            given, case = shlex.split(mistake.written), "mistake on the command line"
        yield Call(case, (*ALIGN, *given), recipe=mistake.recipe)


def measure(call: Call, folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    (folder / "recipe.yaml").write_text(call.recipe, encoding="utf-8")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        call.command,
        cwd=folder,
        env=environment | dict(call.environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(measured: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    rows = []
    for case, times in measured.items():
        wall, cpu = zip(*times, strict=True)
        figures = {"wall_median": statistics.median(wall), "cpu_median": statistics.median(cpu), "cpu_longest": max(cpu)}
        rows.append({"case": case, "processes": len(times), **{name: round(value, 3) for name, value in figures.items()}})
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'':34} processes  wall s  CPU s  longest CPU s")
    for row in rows:
        figures = f"{row['wall_median']:6.2f} {row['cpu_median']:6.2f} {row['cpu_longest']:14.2f}"
        print(f"{row['case']:34} {row['processes']:9}  {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="processes of each case, and of each mistake")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests/contract"))
    from test_mistakes import make_folder

    load, wanted = round(os.getloadavg()[0], 2), list(calls())
    measured: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "user"
        folder.mkdir()
        make_folder(folder)
        # A user has the byte code from an earlier call.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": str(Path(made) / "byte-code"), "PYTHONPATH": str(ROOT)}
        for call in wanted:
            measure(call, folder, environment)
        for _ in range(arguments.repeats):
            for call in wanted:
                measured.setdefault(call.case, []).append(measure(call, folder, environment))
    rows = table(measured)
    show(rows)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": load}
    content = {
        "command": "python scripts/benchmarks/cli_latency.py",
        "machine": machine,
        "repeats": arguments.repeats,
        "cases": rows,
    }
    write_json(arguments.out, content)


if __name__ == "__main__":
    main()
