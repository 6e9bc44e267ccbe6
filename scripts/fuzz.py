"""Fuzzing: hostile inputs for every parser, by the hundred thousand. Each is accepted or refused by a documented error.

    python scripts/fuzz.py [--target recipe] [--inputs 100000] [--seed 1] [--jobs 2] [--keep FOLDER]
    python scripts/fuzz.py --replay FILE --target recipe
    python scripts/fuzz.py --case "recipe 1 4711"
    python scripts/fuzz.py --recheck

The targets are in align/testing/fuzz. An input follows from target, seed and number alone. Counted as a finding is any
exception that is not documented, a hang, more than two seconds or a gibibyte, a process that dies, and a file that a template
wrote. Figures are added to scripts/fuzz.json, from the number of the last input of that seed on; `--replay` reads the one input
in a file (which `--keep` wrote), `--case` the one that a finding names. They write nothing. `--recheck` reads the inputs of all
findings in the file again, and counts those as fixed that are read as promised now. scripts/build_trust.py puts the counts into
docs/trust.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.store.atomic import write_json
from align.testing.fuzz import TARGETS
from align.testing.fuzz.part import replay, run_part
from align.testing.fuzz.target import Counts, Target, input_of, try_input

RESULT = Path(__file__).with_suffix(".json")
PART_INPUTS = {
    "recipe": 20_000, "templates": 20_000, "rows": 20_000, "model_folder": 25_000, "tokenizer": 20_000,
    "adapter": 50_000, "candidates": 50_000, "manifests": 50_000, "headers": 50_000,
}  # fmt: skip
"""Inputs that one process reads: a minute or two."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="default: all")
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after, for each target")
    parser.add_argument("--keep", type=Path, help="folder for inputs with findings")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--case", metavar='"TARGET SEED NUMBER"')
    parser.add_argument("--recheck", action="store_true")
    options = parser.parse_args()
    if options.recheck:
        return _recheck()
    if options.case or options.replay:
        return _again(options)
    return max([_fuzz(name, options) for name in options.target or TARGETS])


def _again(options: argparse.Namespace) -> int:
    """Read one input again, with its traceback."""
    if options.case:
        name, seed, number = options.case.split(" ")
        with tempfile.TemporaryDirectory(prefix="align-fuzz-") as folder:
            data = input_of(TARGETS[name](Path(folder)), name, int(seed), int(number))
    else:
        [name], data = options.target, options.replay.read_bytes()
    print(repr(data[:2000]))
    with tempfile.TemporaryDirectory(prefix="align-fuzz-") as folder:
        print(TARGETS[name](Path(folder)).read(data))  # a finding shows its traceback here
    return bool(replay(name, [data])[1])


def _recheck() -> int:
    whole = _read()
    for name, counts in whole.items():
        with tempfile.TemporaryDirectory(prefix="align-fuzz-") as folder:
            target = TARGETS[name](Path(folder))
            left = [finding for finding in counts["findings"] if not _is_fixed(target, finding)]
        counts["fixed"] += len(counts["findings"]) - len(left)
        counts["findings"] = left
        print(f"{name}: {counts['fixed']} fixed, {len(left)} left")
    write_json(RESULT, whole)
    return int(any(counts["findings"] for counts in whole.values()))


def _is_fixed(target: Target, finding: str) -> bool:
    name, seed, number = finding.partition(":")[0].split(" ")
    if not number.isdigit():  # of a part, in whose process memory grew
        first, end = map(int, number.split("-"))
        return not run_part(name, int(seed), range(first, end)).findings
    return try_input(target, input_of(target, name, int(seed), int(number)), Counts()) is None


def _fuzz(name: str, options: argparse.Namespace) -> int:
    """Run the next inputs of a target in parts, and add their counts."""
    whole = _read()
    known = whole.get(name, {})
    start = known.get("next_input", {}).get(str(options.seed), 0)
    end, until = start + options.inputs, time.monotonic() + 60 * options.minutes
    found = 0
    with ThreadPoolExecutor(options.jobs) as pool:  # each waits for a process
        size = PART_INPUTS[name]
        parts = [range(at, min(at + size, end)) for at in range(start, end, size)]
        for first in range(0, len(parts), options.jobs):
            if time.monotonic() > until:
                break
            some = parts[first : first + options.jobs]
            for counts in pool.map(lambda part: run_part(name, options.seed, part, options.keep), some):
                found += len(counts.findings)
                for finding in counts.findings:
                    print(f"finding: {finding}", flush=True)
                _add(name, options.seed, some[-1].stop, counts)
            print(f"{name}: {some[-1].stop:,} of {end:,}, {found} findings", flush=True)
    return int(found > 0)


def _read() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.exists() else {}


def _add(name: str, seed: int, next_input: int, counts: Counts) -> None:
    """Add the counts of a part to the file, which is read again: several targets may be run at once."""
    whole = _read()
    known = dict(whole.get(name, {}))
    seeds = {**known.pop("next_input", {}), str(seed): next_input}
    total = Counts(**{**known, "refused": Counter(known.get("refused", {}))}) if known else Counts()
    total.add(counts)
    fields = {**asdict(total), "refused": dict(sorted(total.refused.items())), "next_input": seeds}
    write_json(RESULT, {**whole, name: fields})


if __name__ == "__main__":
    raise SystemExit(main())
