"""Rows per second and peak memory of validating preference pairs of about 370 bytes a row, JSON Lines, from 0.1 to 5 million.

    python scripts/benchmarks/validation.py

Every run is a process of its own, and the faster of two counts; writes scripts/benchmarks/validation.json. The files need 2 GB of
temporary space.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from align.data.source import Source, SourceFile
from align.data.validation import RowRules, validate_source
from align.rows import PREFERENCES
from align.store.atomic import write_json

RESULT = Path(__file__).with_suffix(".json")
REPEATS = 2
SIZES = (100_000, 500_000, 1_000_000, 5_000_000)
REPEATED_EVERY = 1000
"""Every so many rows one repeats the row before it, so that comparing rows has something to find."""
WORDS = [
    "time",
    "person",
    "year",
    "way",
    "day",
    "thing",
    "man",
    "world",
    "life",
    "hand",
    "part",
    "child",
    "eye",
    "woman",
    "place",
    "work",
    "week",
    "case",
    "point",
    "company",
]


def write_pairs(path: Path, rows: int) -> None:
    """Pairs of about 370 bytes; the words are drawn once, the numbers make every prompt another."""
    drawn = random.Random(17)
    texts = [" ".join(drawn.choices(WORDS, k=18)) for _ in range(1009)]
    with path.open("w", encoding="ascii") as stream:
        for number in range(rows):
            row = number - 1 if number % REPEATED_EVERY == REPEATED_EVERY - 1 else number
            prompt, chosen, rejected = (texts[row * step % 1009] for step in (1, 7, 13))
            stream.write(f'{{"prompt": "{prompt} {row}?", "chosen": "{chosen} for {row}.", "rejected": "{rejected} of it."}}\n')


def measure(path: Path) -> dict[str, Any]:
    """Validate one file in this process and those it starts."""
    started = time.perf_counter()
    source = Source((SourceFile(path, path.name, {}),), path.name)
    summary = validate_source(source, RowRules(PREFERENCES), near_duplicates=False)
    seconds = time.perf_counter() - started
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in (own, children))
    return {
        "rows": summary.rows_in,
        "file_mb": round(path.stat().st_size / 1e6),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "rows_per_second": round(summary.rows_in / seconds),
        "repeated_rows_found": summary.counts()["repeated_rows"],
        "peak_rss_mib": round(own.ru_maxrss / 1024),
        "peak_rss_largest_child_mib": round(children.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    load, table = round(os.getloadavg()[0], 2), []
    with tempfile.TemporaryDirectory() as folder:
        for rows in SIZES:
            path = Path(folder) / "pairs.jsonl"
            write_pairs(path, rows)
            command = [sys.executable, __file__, "--measure", str(path)]
            runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(REPEATS)]
            table.append(min(runs, key=lambda run: float(run["seconds"])))
            print(table[-1], flush=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": load}
    write_json(
        RESULT, {"command": "python scripts/benchmarks/validation.py", "machine": machine, "repeats": REPEATS, "sizes": table}
    )


if __name__ == "__main__":
    main()
