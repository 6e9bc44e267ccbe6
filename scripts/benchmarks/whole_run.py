#!/usr/bin/env python3
"""Measure the quickstart as a newcomer meets it, and generation against a bare vLLM script.

    .venv/bin/python scripts/benchmarks/whole_run.py [--parts run generation]

Wall times are of whole commands, started as processes from an empty store; `phase_seconds` says what the stages of the first one
did, as `align run --profile` does. Peak memory is the largest resident set of any process of the run, read from /proc ten times a
second. Nothing else should run on the machine; the load before the start is written down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import StageFinished
from align.testing.processes import descendants

ROOT = Path(__file__).resolve().parents[2]
ALIGN = str(Path(sys.executable).parent / "align")
RECIPE = "recipes/quickstart"
REPEATS, ROUNDS = 5, 3
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


def generation(folder: Path) -> dict[str, Any]:
    """Tokens per second of a `generate` stage and of vLLM called bare, in turn, each in a process of its own."""
    settings = dict(YAML(typ="safe").load(ROOT / RECIPE / "recipe.yaml")["stages"]["candidates"])
    stage = {**settings, "model": "base", "prompts": "prompts"}
    inputs = {
        "base": {"kind": "model", "path": str(ROOT / RECIPE / "base_model")},
        "prompts": {"kind": "prompts", "path": str(ROOT / RECIPE / "data" / "prompts.jsonl")},
    }
    rates: dict[str, list[float]] = {"align": [], "bare_vllm": []}
    for number in range(ROUNDS):
        place = folder / f"generation-{number}"
        place.mkdir()
        (place / "recipe.json").write_text(json.dumps({"name": "sampling", "inputs": inputs, "stages": {"sampled": stage}}))
        timed(ALIGN, "run", str(place / "recipe.json"), "--out", str(place))
        made = json.loads((place / "sampling" / "stages" / "sampled" / "manifest.json").read_text())
        rates["align"].append(made["metrics"]["tokens_per_second"])
        bare = timed(sys.executable, str(BARE_SCRIPT), inputs["base"]["path"])
        rates["bare_vllm"].append(json.loads(bare["output"].splitlines()[-1])["tokens_per_second"])
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return {**rates, "ratio": round(medians["align"] / medians["bare_vllm"], 3)}


def whole_run(folder: Path) -> dict[str, Any]:
    """The quickstart from an empty store, then again, then plans of it."""
    run = [ALIGN, "run", RECIPE, "--out", str(folder)]
    first = timed(*run, watch_memory=True)
    manifests = folder.glob("quickstart/stages/*/manifest.json")
    changed = timed(ALIGN, "plan", RECIPE, "--out", str(folder), "--set", "stages.dpo.dpo.beta=0.3", "--json")["output"]
    return {
        "run_from_empty": {key: first[key] for key in ("seconds", "peak_memory_bytes")},
        "stage_seconds": {path.parent.name: json.loads(path.read_text())["seconds"] for path in sorted(manifests)},
        "phase_seconds": phase_seconds(folder / "quickstart" / EVENTS_NAME),
        "second_run": best_of(lambda: timed(*run)["seconds"]),
        "plan": best_of(lambda: timed(ALIGN, "plan", RECIPE, "--out", str(folder))["seconds"]),
        "runs_after_beta_changed": [stage["name"] for stage in json.loads(changed)["stages"] if stage["status"] == "run"],
        "help": best_of(lambda: timed(ALIGN, "--help")["seconds"]),
    }


PARTS = {"run": whole_run, "generation": generation}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="the figures of others stay")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument(
        "--runs", type=Path, help="empty folder to run the quickstart in, and to keep. Default: one that is removed"
    )
    arguments = parser.parse_args()
    if arguments.runs and arguments.runs.exists() and any(arguments.runs.iterdir()):
        parser.error(f"{arguments.runs} is not empty; the run must start from nothing")
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.parts:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)}
        with tempfile.TemporaryDirectory() as folder:
            place = arguments.runs if arguments.runs and part == "run" else Path(folder)
            result[part] = {"machine": machine, **PARTS[part](place)}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
