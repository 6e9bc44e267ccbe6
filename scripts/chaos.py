"""Faults over a whole run, thousands of them: the same command must give the same bytes, or refuse by name. Nothing in silence.

    python scripts/chaos.py [--project quickstart] [--kills N] [--damages N] [--others N] [--jobs 2] [--case KIND-NUMBER]

The tiny project (eleven stages: SFT, reward model, sampling, scoring, rejection sampling, pairs, ORPO, PPO, DPO, a comparison),
or the quickstart with a few rows and a small model, is run undisturbed twice. Then come cases, each in a folder of its own, and
each decided by its seed, kind and number:

- `kill`: from an empty folder, any process of the run, or all at once, is killed (signal 9) at any moment, again and again;
- `damage`: in the folder of a finished or an interrupted run, up to ten files are damaged in any of the ways of `DAMAGES`;
- `other`: a disk that is full, a signal (SIGINT once and twice, SIGTERM, SIGHUP, SIGUSR1, SIGTSTP), two runs at once, processes
  that stand still for a while, clocks that were wrong.

After each, the same command goes on undisturbed, and every file of the results is compared with the undisturbed run's. Counted as
`silent` is a result that differs although the command said nothing; as a problem also a traceback, an exit code that is not
documented, a hang, and a process that outlives its run by two seconds. Figures are added to scripts/chaos.json, and
of the quickstart to chaos_quickstart.json, from the number of the last case on. `--case damage-17` runs one case again and shows
what happened, and writes nothing. `--recheck` runs the cases of all problems in the file again, and counts those as fixed that
end as promised now.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos_faults import OTHERS, Case, damage_some, kill_some

from align.store.atomic import write_json
from align.testing import tiny_project, warm_run
from align.testing.chaos_run import ChaosRun
from align.testing.reduced import small_quickstart

RESULTS = {"tiny": Path(__file__).with_suffix(".json"), "quickstart": Path(__file__).with_name("chaos_quickstart.json")}
"""Of each project."""
KINDS = ("kill", "damage", "other")
SHOWN_PROBLEMS = 40
MOST_BYTES = 12 << 30
"""Addresses of a process; the tiny project takes 3 GB of them."""
INTERRUPTED = 4
"""Runs that were killed somewhere, whose folders the damages are done to, beside that of a finished run."""


@dataclass
class Tally:
    """What came of the cases of one kind."""

    cases: int = 0
    faults: int = 0
    """Kills, damaged files, or others."""
    identical: int = 0
    """Results with the bytes of the undisturbed run."""
    refused: int = 0
    """Commands that refused by name before that."""
    silent: int = 0
    """Results that differ although nothing was said."""
    by_fault: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    fixed: int = 0
    """Former problems that do not occur any more."""

    def add(self, found: dict[str, Any]) -> None:
        """Count a case."""
        self.cases += 1
        self.faults += len(found["faults"])
        self.identical += found["identical"]
        self.refused += found["refused"]
        self.silent += found["silent"]
        self.by_fault.update(found["faults"])
        self.problems += _shortened(found)

    def recheck(self, found: dict[str, Any]) -> None:
        """Take out the problem of a case that ends as promised now; another one is kept in its place."""
        left = [problem for problem in self.problems if problem.partition(":")[0] != found["case"]]
        new = _shortened(found)
        self.fixed += len(self.problems) - len(left) if not new else 0
        self.problems = [*left, *new]

    @classmethod
    def of(cls, known: dict[str, Any] | None) -> Tally:
        """That of earlier cases."""
        return cls() if known is None else cls(**{**known, "by_fault": Counter(known["by_fault"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "by_fault": dict(sorted(self.by_fault.items())), "problems": self.problems[:SHOWN_PROBLEMS]}


def prepare(folder: Path, project: str) -> None:
    """The project, two undisturbed runs and some interrupted ones, and what the two have in common."""
    place, options = folder / project, list[str]()
    if project == "quickstart":
        recipe, options = small_quickstart(place)
    else:
        recipe = tiny_project(place)
    warm_run.import_libraries()
    found = []
    for name in ("finished", "again"):
        run = ChaosRun(recipe, folder / name, *options)
        end = run.run()
        if end.code or end.problem():
            raise SystemExit(f"the undisturbed run: {end.problem() or end.output}")
        found.append((run.content(), end.seconds))
    (first, seconds), (second, _) = found
    wanted = {name: digest for name, digest in first.items() if second.get(name) == digest}
    size = sum(path.lstat().st_size for path in (folder / "finished").rglob("*"))
    undisturbed: dict[str, Any] = {
        "recipe": str(recipe), "options": options, "seconds": seconds, "size_bytes": size, "wanted": wanted,
    }  # fmt: skip
    write_json(folder / "wanted.json", undisturbed)
    left_out = sorted(first.keys() - wanted.keys())
    print(f"an undisturbed run takes {seconds:.1f} s; {len(wanted)} files, and {left_out} are not the same twice", flush=True)
    chance = random.Random(0)
    for number in range(INTERRUPTED):
        case = Case(folder, f"interrupted-{number}", chance, **undisturbed)
        run = case.run_in(folder / f"interrupted-{number}")
        case.kill_during(run, iter([(seconds * (number + 1) / (INTERRUPTED + 1), "all")]))


def one_case(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Run one case; what came of it."""
    kind, _, number = name.rpartition("-")
    known = json.loads((folder / "wanted.json").read_text())
    chance = random.Random(f"{seed}-{name}")
    case = Case(folder, name, chance, **known)
    try:
        if kind == "kill":
            kill_some(case)
        elif kind == "damage":
            damage_some(case, folder, INTERRUPTED)
        else:
            OTHERS[int(number) % len(OTHERS)](case)
    except Exception:
        case.problems.append(f"chaos.py itself: {traceback.format_exc()[-1500:]}")
    finally:
        shutil.rmtree(case.place, ignore_errors=True)
    return case.to_json()


def cases(folder: Path, names: Iterator[str], seed: int, jobs: int, until: float) -> Iterator[dict[str, Any]]:
    """Run cases, so many at a time, each in a process of its own; what came of each, as it ends."""
    running: dict[int, Path] = {}
    more = True
    while running or more:
        while more and len(running) < jobs:
            name = next(names, None) if time.monotonic() < until else None
            if name is None:
                more = False
                break
            answer = folder / f"{name}.json"

            def work(name: str = name, answer: Path = answer) -> None:
                answer.write_text(json.dumps(one_case(folder, name, seed)))

            running[warm_run.in_a_fork(work, folder / f"{name}.log")] = answer
        if not running:
            break
        process, _ = os.waitpid(-1, 0)
        if (answer := running.pop(process, None)) is None:  # type: ignore[arg-type]
            continue
        log = answer.with_suffix(".log")
        if not answer.exists():
            raise SystemExit(f"{answer.stem} ended without an answer:\n{log.read_text()[-3000:]}")
        yield json.loads(answer.read_text())
        answer.unlink()
        log.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="how many; a case has several")
    parser.add_argument("--damages", type=int, default=0, help="how many files; a case has up to ten")
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--minutes", type=float, default=1e6, help="no case begins after that")
    parser.add_argument("--case", help="run this one again, such as damage-17")
    parser.add_argument("--recheck", action="store_true", help="run the cases of all problems again")
    parser.add_argument("--project", choices=list(RESULTS), default="tiny")
    parser.add_argument("--out", type=Path, help="default: the file of the project's figures")
    options = parser.parse_args()
    out = options.out or RESULTS[options.project]
    wanted = dict(zip(KINDS, (options.kills, options.damages, options.others), strict=True))
    known = json.loads(out.read_text()) if out.exists() else {}
    again: Iterable[str] = [options.case] if options.case else []
    if options.recheck:
        noted = (problem for kind in KINDS for problem in known.get(kind, {}).get("problems", []))
        again = dict.fromkeys(problem.partition(":")[0] for problem in noted)
    first = {kind: known.get(kind, {}).get("cases", 0) for kind in KINDS}
    tallies = {kind: Tally.of(known.get(kind)) for kind in KINDS}
    goals = {kind: tallies[kind].faults + wanted[kind] for kind in KINDS}
    # One thread, so that the number of cores changes no bytes.
    os.environ["OMP_NUM_THREADS"] = "1"
    # A command that reads without end meets this, and not the machine's last byte.
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def names() -> Iterator[str]:
        begun = dict(first)
        while open_kinds := [kind for kind in KINDS if tallies[kind].faults < goals[kind]]:
            for kind in open_kinds:
                yield f"{kind}-{begun[kind]}"
                begun[kind] += 1

    with tempfile.TemporaryDirectory(prefix="align-chaos-") as place:
        folder = Path(place)
        os.waitpid(warm_run.in_a_fork(lambda: prepare(folder, options.project)), 0)
        if not (folder / f"interrupted-{INTERRUPTED - 1}").exists():
            raise SystemExit("the undisturbed runs failed")
        warm_run.import_libraries()
        chosen = iter(again) if options.case or options.recheck else names()
        until = time.monotonic() + options.minutes * 60
        for found in cases(folder, chosen, options.seed, options.jobs, until):
            print(json.dumps(found, indent=2) if options.case else _line(found), flush=True)
            if options.case:
                continue
            tally = tallies[found["case"].rpartition("-")[0]]
            tally.recheck(found) if options.recheck else tally.add(found)
            machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
            counts = {kind: tally.to_json() for kind, tally in tallies.items() if tally.cases}
            command = f"python scripts/chaos.py --project {options.project}"
            write_json(out, {"command": command, "seed": options.seed, "machine": machine, **counts})
    if problems := [problem for tally in tallies.values() for problem in tally.problems]:
        sys.exit("\n".join(problems))


def _shortened(found: dict[str, Any]) -> list[str]:
    """The problems of a case, each with its name."""
    texts = (problem if len(problem) < 800 else f"{problem[:60]}…{problem[-700:]}" for problem in found["problems"])
    return [f"{found['case']}: {text}" for text in texts]


def _line(found: dict[str, Any]) -> str:
    state = "SILENT" if found["silent"] else "problem" if found["problems"] else "identical"
    return f"{found['case']}: {state}, {found['seconds']:.0f} s, {', '.join(found['faults'])}"


if __name__ == "__main__":
    main()
