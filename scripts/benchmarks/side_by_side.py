"""Two trainings of the quickstart, one after the other with all threads, and side by side with half of them each.

    python scripts/benchmarks/side_by_side.py --rounds 3

Rejection sampling and ORPO learn from the same candidates. Both ways take turns; each is a run of its own, in which all other
stages have their results. The time goes from the first optimizer step's stage to the end of the last stage, without the imports
that a run makes once. Writes side_by_side.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from align.pipeline.plan import LINKS_NAME
from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import StageFinished, StageStarted
from align.store.artifact import STORE_NAME
from align.store.atomic import write_json

RESULT = Path(__file__).with_suffix(".json")
QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"
STAGES = ("rejection_sampling", "orpo")
AFTER = "  # Two rounds of DPO."
"""What the recipe has from here on is left out."""


def align(recipe: Path, out: Path, at_once: int) -> None:
    machine = out.parent / "machine.yaml"
    machine.write_text(f"schedule: {{at_once: {at_once}}}\n")
    command = [sys.executable, "-m", "align.cli.main", "run", str(recipe), "--out", str(out), "--machine", str(machine)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(recipe: Path, out: Path, at_once: int) -> float:
    """Seconds of the two stages together."""
    run = out / "side-by-side"
    for name in STAGES:
        if (link := run / LINKS_NAME / name).exists():
            shutil.rmtree(link.resolve())
    (run / EVENTS_NAME).unlink(missing_ok=True)
    align(recipe, out, at_once)
    events = list(read_events(run / EVENTS_NAME))
    started = {event.stage: event.time for event in events if isinstance(event, StageStarted)}
    finished = {event.stage: event for event in events if isinstance(event, StageFinished)}
    begun = {name: started[name] + finished[name].phases["start"] for name in STAGES}
    if at_once == 1:
        return sum(finished[name].time - begun[name] for name in STAGES)
    return max(finished[name].time for name in STAGES) - min(begun.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="folder of runs in which the quickstart has run; default: it runs first")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe, out = Path(shutil.copytree(QUICKSTART, Path(folder) / "quickstart")), Path(folder) / "runs"
        text = (recipe / "recipe.yaml").read_text().replace("name: quickstart", "name: side-by-side")
        (recipe / "recipe.yaml").write_text(text[: text.index(AFTER)])
        if options.runs is not None:
            shutil.copytree(options.runs / STORE_NAME, out / STORE_NAME, symlinks=True)
        align(recipe, out, 1)
        load, rounds = os.getloadavg()[0], []
        for _ in range(options.rounds):
            rounds.append({"one by one": measure(recipe, out, 1), "side by side": measure(recipe, out, 2)})
            print(rounds[-1], flush=True)
    ratios = [one["side by side"] / one["one by one"] for one in rounds]
    found: dict[str, Any] = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor(), "load_before": round(load, 2)},
        "stages": STAGES,
        "rounds": [{name: round(seconds, 2) for name, seconds in one.items()} for one in rounds],
        "side by side / one by one": {"median": round(median(ratios), 3), "all": [round(ratio, 3) for ratio in ratios]},
    }
    write_json(RESULT, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
