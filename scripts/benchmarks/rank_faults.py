"""Kill ranks of a training, and the processes above them, at random moments; the same command must give the same bytes.

    python scripts/benchmarks/rank_faults.py [--kills 30] [--seed 1] [--strategies ddp fsdp2]

A tiny project's SFT runs with two processes and a checkpoint after every step. Each attempt is killed (signal 9) after a random
share of the time that an undisturbed run takes, at a random place: rank 0, rank 1, the stage's process that started them, or the
run. Then the same command goes on, until the attempt that is not killed ends. Writes scripts/benchmarks/rank_faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from align.store.atomic import write_json
from align.testing import tiny_project

RESULT = Path(__file__).with_suffix(".json")
PLACES = ("rank 0", "rank 1", "stage", "run")
GONE_SECONDS = 60.0
"""After a kill, every process of the attempt must have ended after so long."""


def processes_of(run: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The processes of a run by place, as far as they have started."""
    found = {"run": psutil.Process(run.pid)}
    try:
        for server in found["run"].children():
            # Below the fork server are stages, and below a stage its ranks, in their order.
            for stage in server.children():
                if ranks := sorted(stage.children(), key=lambda child: child.pid):
                    found["stage"] = stage
                    found |= {f"rank {number}": rank for number, rank in enumerate(ranks)}
    except psutil.NoSuchProcess:
        pass
    return found


def attempt(command: list[str], kill_after: float | None, place: str) -> tuple[str | None, float]:
    """Run once. Returns the place of the kill, None if the run ended before, and how long everything took to end after it."""
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    everyone: dict[int, psutil.Process] = {}
    started = time.monotonic()
    while run.poll() is None:
        found = processes_of(run)
        everyone |= {process.pid: process for process in found.values()}
        if kill_after is not None and time.monotonic() - started >= kill_after and place in found:
            found[place].send_signal(signal.SIGKILL)
            killed_at = time.monotonic()
            run.wait(GONE_SECONDS)
            _, alive = psutil.wait_procs([*everyone.values()], timeout=GONE_SECONDS)
            if alive:
                raise SystemExit(f"{[process.pid for process in alive]} outlived the kill of {place}")
            return place, time.monotonic() - killed_at
        time.sleep(0.02)
    return None, 0.0


def content(out: Path) -> dict[str, str]:
    """sha256 of every file of the model."""
    manifest = json.loads((out / "tiny/stages/sft/manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items() if name != "metrics.jsonl"}


def check(folder: Path, strategy: str, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill so many times."""
    machine = folder / f"{strategy}.yaml"
    machine.write_text(f"training: {{processes: 2, strategy: {strategy}}}\n")
    recipe = folder / "project" / "recipe.yaml"

    def command(out: Path) -> list[str]:
        options = ["--machine", str(machine), "--out", str(out), "--until", "sft", "--quick"]
        return [sys.executable, "-m", "align.cli.main", "run", str(recipe), *options, "--set", "stages.sft.checkpoint_steps=1"]

    undisturbed = folder / f"undisturbed-{strategy}"
    started = time.monotonic()
    subprocess.run(command(undisturbed), check=True, capture_output=True)
    whole = time.monotonic() - started
    done, runs, different, ends = Counter[str](), 0, 0, []
    while sum(done.values()) < kills:
        out = folder / f"killed-{strategy}-{runs}"
        for _ in range(chance.randint(1, 4)):
            place, seconds = attempt(command(out), chance.uniform(0.3, 1.0) * whole, chance.choice(PLACES))
            if place is None:
                break
            done[place] += 1
            ends.append(seconds)
        subprocess.run(command(out), check=True, capture_output=True)
        runs += 1
        different += content(out) != content(undisturbed)
        print(f"{strategy}: {sum(done.values())} kills in {runs} runs, {different} with other bytes", flush=True)
    return {
        "strategy": strategy,
        "kills": dict(done),
        "runs": runs,
        "different": different,
        "slowest_end_seconds": round(max(ends), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp2"])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_project(folder / "project")
        found = [check(folder, strategy, options.kills, random.Random(options.seed)) for strategy in options.strategies]
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    write_json(options.out, {"seed": options.seed, "machine": machine, "results": found})
    if any(result["different"] for result in found):
        raise SystemExit("a run that was killed ended with other bytes")


if __name__ == "__main__":
    main()
