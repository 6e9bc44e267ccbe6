"""Rows per second and peak memory of pairs and best of n, from 0.1 to 5 million candidates in Parquet.

    python scripts/benchmarks/selection.py [--sizes 100000 500000 1000000 5000000]

Candidates of about 400 bytes, 8 per prompt, are written to a temporary folder, the same ones every time. Each selection runs
twice: bare (the function that the stages call), and as `align stage`, with everything that comes with it: hashing the input, the
worker process, hashing and committing the result. Writes scripts/benchmarks/selection.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.store.atomic import write_json

RESULT = Path(__file__).with_suffix(".json")
SIZES = (100_000, 500_000, 1_000_000, 5_000_000)
EACH, SHARD_ROWS, GROUP_ROWS = 8, 1_000_000, 131_072
WORDS_PER_PROMPT, WORDS_PER_COMPLETION = 16, 40
POLL_SECONDS = 0.1
BARE = """
import sys
from pathlib import Path
from align.selection.best_of_n import BestRule, BestSelector
from align.selection.files.reader import RowFile
from align.selection.run import select_from_files
from align.selection.pair import PairSelector
from align.selection.pair_rule import PairRule
if __name__ == "__main__":
    what, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    selector = PairSelector(PairRule(scorer="rm")) if what == "pairs" else BestSelector(BestRule(scorer="rm"))
    files = [RowFile(path) for path in sorted(source.iterdir())]
    select_from_files(files, selector, name=what, output=out, work=out / "work", count=lambda *_: None)
"""


def write_candidates(folder: Path, rows: int) -> None:
    """Parquet shards of random words; a row's prompt, completion and other columns are about 400 bytes."""
    generator = np.random.default_rng(0)
    vocabulary = np.array(["".join(map(chr, generator.integers(97, 123, 6))) for _ in range(500)])

    def texts(number: int, words: int) -> list[str]:
        return [" ".join(vocabulary[row]) for row in generator.integers(0, len(vocabulary), (number, words))]

    folder.mkdir()
    for shard, start in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - start)
        prompts = count // EACH
        scores = pa.StructArray.from_arrays([pa.array(np.round(generator.normal(size=count), 4))], ["rm"])
        table = pa.table(
            {
                "prompt_id": np.repeat([f"p{start // EACH + number:08d}" for number in range(prompts)], EACH),
                "prompt": np.repeat(texts(prompts, WORDS_PER_PROMPT), EACH),
                "candidate_index": np.tile(np.arange(EACH), prompts),
                "completion": texts(count, WORDS_PER_COMPLETION),
                "finish_reason": np.where(generator.random(count) < 0.03, "length", "stop"),
                "scores": scores,
            }
        )
        pq.write_table(table, folder / f"shard-{shard:03d}.parquet", row_group_size=GROUP_ROWS, compression="snappy")


def family(process: int) -> list[int]:
    """A process and all it has started."""
    found = [process]
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        for child in thread.read_text().split():
            found += family(int(child))
    return found


def memory(process: int) -> tuple[int, int]:
    """Bytes that a process and its children hold together, what they share counted once, and the largest one's alone."""
    together, largest = 0, 0
    for member in family(process):
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        together, largest = together + sizes.get("Pss", 0), max(largest, sizes.get("Rss", 0))
    return together, largest


def measure(command: list[str], rows: int) -> dict[str, Any]:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    together = largest = 0
    while process.poll() is None:
        try:
            now = memory(process.pid)
        except OSError:
            now = (0, 0)
        together, largest = max(together, now[0]), max(largest, now[1])
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "peak_memory_mib": round(together / 2**20),
        "largest_process_mib": round(largest / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bare.py").write_text(BARE)
        for rows in arguments.sizes:
            source = folder / f"rows-{rows}"
            write_candidates(source, rows)
            size = sum(path.stat().st_size for path in source.iterdir())
            row: dict[str, Any] = {"rows": rows, "input_mib": round(size / 2**20)}
            for what in ("pairs", "best_of_n"):
                out = folder / f"{what}-{rows}"
                row[what] = {"bare": measure([sys.executable, str(folder / "bare.py"), what, str(source), str(out)], rows)}
                command = [sys.executable, "-m", "align.cli.main", "stage", what, "--scored", f"{source}/*.parquet"]
                row[what]["stage"] = measure([*command, "--scorer", "rm", "--out", str(folder / f"stage-{what}-{rows}")], rows)
            results.append(row)
            print(row, flush=True)
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "pyarrow": pa.__version__}
    write_json(arguments.result, {"command": "python scripts/benchmarks/selection.py", "machine": machine, "results": results})


if __name__ == "__main__":
    main()
