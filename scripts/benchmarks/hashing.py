#!/usr/bin/env python3
"""What it costs that every stage compares its inputs with their hashes: the rate of hashing, and its share of stages.

    .venv/bin/python scripts/benchmarks/hashing.py [--share] [--shape smollm2-135m] [--rows 24]

The rate is of files in memory (they were just written), by `FileHashes.read`: one file on one core, and several at once. Reading
the same bytes without a hash is timed in turn. With `--share`, which takes minutes, also the share of a stage: the phase `hash`,
in which the hashing of the result counts too, from the events of a run: sft for three optimizer steps, from a model of a public
shape with random weights. Real trainings have more steps, so the share is an upper bound for them.

Writes scripts/benchmarks/hashing.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align import load_recipe, run_recipe
from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import StageFinished
from align.runtime.threads import usable_cores
from align.store.fingerprint import BLOCK_BYTES, FileHashes
from align.testing.project import write_jsonl
from align.testing.shapes import SHAPES, shaped_causal_lm

RESULT = Path(__file__).with_suffix(".json")
FILE_BYTES = 256 << 20
REPEATS = 7
RECIPE = """\
name: hashing
inputs:
  base:  {kind: model, path: base}
  rows:  {kind: instructions, path: instructions.jsonl}
stages:
  sft: {stage: sft, model: base, data: rows, num_epochs: 1, batch_size: 8, max_tokens: 256, keep_epochs: none}
"""


def only_read(paths: list[Path]) -> None:
    block = memoryview(bytearray(BLOCK_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(block):
                pass


def seconds_of(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rates(folder: Path) -> dict[str, Any]:
    """GB per second, the median of several turns."""
    paths = [folder / f"file-{number}" for number in range(max(2, min(usable_cores(), 8)))]
    for path in paths:
        path.write_bytes(os.urandom(FILE_BYTES))
    ways: dict[str, tuple[int, Callable[[], None]]] = {
        "read_only": (1, lambda: only_read(paths[:1])),
        "one_file": (1, lambda: FileHashes(None).read(paths[:1], again=True)),
        f"{len(paths)}_files_at_once": (len(paths), lambda: FileHashes(None).read(paths, again=True)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, (count, work) in ways.items():
            found[name].append(count * FILE_BYTES / 1e9 / seconds_of(work))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def shares(folder: Path, shape: str, rows: int) -> dict[str, Any]:
    """Seconds of the phase `hash` and of the whole stage."""
    shaped_causal_lm(folder / "base", shape, dtype="bfloat16", seed=1)
    texts = [f"Tell me about the number {number}." for number in range(rows)]
    answer = "It is a number, and people count with it. " * 4
    write_jsonl(folder / "instructions.jsonl", ({"prompt": text, "completion": f"{answer}{text}"} for text in texts))
    (folder / "recipe.yaml").write_text(RECIPE)
    run = run_recipe(load_recipe(folder / "recipe.yaml"), folder / "runs").folder
    stages = {}
    for event in read_events(run / EVENTS_NAME):
        if isinstance(event, StageFinished):
            total, hashed = sum(event.phases.values()), event.phases.get("hash", 0.0)
            parameters = event.metrics["trained_parameters"]
            stages[event.stage] = {
                "parameters": parameters,
                "seconds": round(total, 2),
                "hash_seconds": hashed,
                "share": round(hashed / total, 4),
            }
    return {"shape": shape, "rows": rows, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--share", action="store_true", help="run a training, too")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        result = {
            "machine": {"cores": usable_cores(), "processor": platform.machine(), "sha_extensions": "sha_ni" in flags},
            "gb_per_second": rates(folder),
            **({"run": shares(folder, options.shape, options.rows)} if options.share else {}),
        }
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
