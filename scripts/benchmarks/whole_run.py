#!/usr/bin/env python3
"""Measure the quickstart as a newcomer meets it, and generation against a bare vLLM script.

    .venv/bin/python scripts/benchmarks/whole_run.py [--out scripts/benchmarks/whole_run.json]

Wall times are of whole commands, started as processes from an empty store; `phase_seconds` says what the stages of the first one
did, as `align run --profile` does. Peak memory is the largest resident set of any process of the run, read from /proc ten times a
second. Nothing else should run on the machine; the load before the start is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import StageFinished
from align.testing.processes import descendants

ROOT = Path(__file__).resolve().parents[2]
ALIGN = str(Path(sys.executable).parent / "align")
RECIPE = "recipes/quickstart"
REPEATS = 5
BARE_SCRIPT = Path(__file__).with_name("bare_vllm.py")


def resident_bytes(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def timed(*arguments: str, watch_memory: bool = False) -> dict[str, Any]:
    """Run a command to its end: wall seconds, and the peak resident set of its largest process."""
    started = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max([peak[0], *(resident_bytes(number) for number in (process.pid, *descendants(process.pid)))])
            time.sleep(0.1)

    if watch_memory:
        threading.Thread(target=watch, daemon=True).start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return {"seconds": round(seconds, 3), "peak_memory_bytes": peak[0], "output": output}


def best_of(measure: Callable[[], float]) -> dict[str, float]:
    values = sorted(measure() for _ in range(REPEATS))
    return {"best_seconds": round(values[0], 3), "median_seconds": round(values[len(values) // 2], 3)}


def phase_seconds(events: Path) -> dict[str, float]:
    """Seconds of each phase over all stages of a run, the longest first."""
    sums = Counter[str]()
    for event in read_events(events):
        if isinstance(event, StageFinished):
            sums.update(event.phases)
    return {name: round(seconds, 1) for name, seconds in sums.most_common()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--runs", type=Path, help="folder to run in, and to keep; it must be empty. Default: one that is removed")
    arguments = parser.parse_args()
    if arguments.runs and arguments.runs.exists() and any(arguments.runs.iterdir()):
        parser.error(f"{arguments.runs} is not empty; the run must start from nothing")
    result: dict[str, Any] = {
        "command": shlex.join(["python", f"scripts/benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)},
    }
    with contextlib.nullcontext(str(arguments.runs)) if arguments.runs else tempfile.TemporaryDirectory() as folder:
        run = [ALIGN, "run", RECIPE, "--out", folder]
        first = timed(*run, watch_memory=True)
        stages = {
            path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("quickstart/stages/*/manifest.json")
        }
        result["run_from_empty"] = {key: first[key] for key in ("seconds", "peak_memory_bytes")}
        result["stage_seconds"] = {name: manifest["seconds"] for name, manifest in sorted(stages.items())}
        result["phase_seconds"] = phase_seconds(Path(folder) / "quickstart" / EVENTS_NAME)
        result["second_run"] = best_of(lambda: timed(*run)["seconds"])
        result["plan"] = best_of(lambda: timed(ALIGN, "plan", RECIPE, "--out", folder)["seconds"])
        other_beta = ["--set", "stages.dpo.dpo.beta=0.3"]
        changed = json.loads(timed(ALIGN, "plan", RECIPE, "--out", folder, *other_beta, "--json")["output"])
        result["runs_after_beta_changed"] = [stage["name"] for stage in changed["stages"] if stage["status"] == "run"]
        sampling = stages["candidates"]["metrics"]
        model = Path(folder) / "quickstart" / "stages" / "sft_best" / "model"
        bare = json.loads(timed(sys.executable, str(BARE_SCRIPT), str(model))["output"].splitlines()[-1])
        ratio = sampling["tokens_per_second"] / bare["tokens_per_second"]
        result["generation"] = {
            "align": sampling["tokens_per_second"],
            "bare_vllm": bare["tokens_per_second"],
            "ratio": round(ratio, 3),
        }
    result["help"] = best_of(lambda: timed(ALIGN, "--help")["seconds"])
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
