"""Kill and freeze processes of a training that two ranks share; the same command must give the same bytes.

    python scripts/benchmarks/rank_faults.py [--kills 30] [--stops 2] [--seed 1] [--parts ddp fsdp2 command]

A tiny project's SFT runs with two processes and a checkpoint after each of its twelve steps. One attempt after the other has a
process killed (signal 9): rank 0, rank 1, the stage's process that started them, or the run; or a rank stopped (SIGSTOP), which
does not answer then. The moment follows from the work done: from when the ranks exist, or a random step, and a random part of a
step later. After one to three such attempts the same command goes on undisturbed. Checked are

- the error, which must name the process that was killed (not for a kill of the run itself),
- that every process of the attempt ends,
- that the result has the bytes of an undisturbed run: weights, tokenizer, and rows of metrics.

Most runs are forked from a process that has imported the libraries (see align.testing.warm_run), which saves ten seconds each;
the kills under `command` are of `python -m align.cli.main run` itself. Writes scripts/benchmarks/rank_faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align.store.atomic import write_json
from align.testing import tiny_project, warm_run
from align.testing.processes import descendants, is_alive, training_of
from align.training import checkpoint

RESULT = Path(__file__).with_suffix(".json")
PLACES = ("rank 0", "rank 1", "stage", "run")
STEPS = 12
START_SECONDS, STEP_SECONDS = 1.0, 0.15
"""About how long ranks need to their first step, and then for each."""
GONE_SECONDS = 120.0
"""After a kill, every process of the attempt must have ended after so long."""
POLL_SECONDS = 0.005
ERRORS = {
    signal.SIGKILL: {
        "rank 0": r"rank 0 of 2 was killed by signal 9 \(SIGKILL\)",
        "rank 1": r"rank 1 of 2 was killed by signal 9 \(SIGKILL\)",
        "stage": r"sft: its process was killed by signal 9 \(SIGKILL\)",
    },
    signal.SIGSTOP: {
        "rank 0": r"rank 0 \(process \d+\) has not answered for \d+ s",
        "rank 1": r"rank 1 \(process \d+\) has not answered for \d+ s",
    },
}
Start = Callable[[Sequence[str], Path], int]


def start_command(arguments: Sequence[str], output: Path) -> int:
    """Start the command as a user does; the id of its process."""
    with output.open("wb") as file:
        command = [sys.executable, "-m", "align.cli.main", *arguments]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT).pid


@dataclass
class Kill:
    """What is killed, when, and what followed."""

    place: str
    number: signal.Signals
    moment: float
    """From 0 to 1: the share of the steps that are left."""
    step: int = 0
    """The last one that was reported before the kill; 0 if none was."""
    ended_seconds: float = 0.0
    """From the kill to the end of the run's process."""
    gone_seconds: float = 0.0
    """From then to the end of the last process below it."""
    named: bool | None = None
    """Whether the error names the process; None where there is none, as the run itself was killed or all the work was done."""
    resumed: int | None = None
    """The step from which the next attempt went on; None if the training was done, or that attempt was killed before."""
    problems: list[str] = field(default_factory=list)


class Run:
    """One result, and the attempts at it."""

    def __init__(self, arguments: Sequence[str], out: Path, start: Start) -> None:
        self.out = out
        self._arguments = [*arguments, "--out", str(out)]
        self._start = start
        self._output = out.with_suffix(".txt")
        self._read = 0

    def undisturbed(self) -> None:
        """Let the command go to its end."""
        self._read = self._events.stat().st_size if self._events.exists() else 0
        process = self._start(self._arguments, self._output)
        _, status = os.waitpid(process, 0)
        if status:
            raise SystemExit(f"the command ended with {os.waitstatus_to_exitcode(status)}:\n{self._output.read_text()}")

    def disturb(self, kill: Kill, chance: random.Random) -> bool:
        """Let the command run until the kill; False if it ended before."""
        before = self.newest()
        target = before + int(kill.moment * (STEPS + 1 - before))
        delay = chance.uniform(0.0, START_SECONDS if target == before else STEP_SECONDS)
        self._read = self._events.stat().st_size if self._events.exists() else 0
        process, everyone, due = self._start(self._arguments, self._output), set[int](), None
        while True:
            if os.waitpid(process, os.WNOHANG)[0]:
                return False
            everyone |= set(descendants(process))
            places = {**training_of(process), "run": process}
            now = time.monotonic()
            if due is None and "stage" in places and (target == before or self.step() >= target):
                due = now + delay
            if due is not None and now >= due and is_alive(places.get(kill.place, 0)):
                break
            time.sleep(POLL_SECONDS)
        os.kill(places[kill.place], kill.number)
        kill.step = max(self.step(), before)
        self._watch_the_end(kill, process, everyone | set(places.values()), now)
        return True

    def _watch_the_end(self, kill: Kill, process: int, everyone: set[int], killed_at: float) -> None:
        status, ended_at = None, 0.0
        while time.monotonic() < killed_at + GONE_SECONDS:
            if status is None and (found := os.waitpid(process, os.WNOHANG))[0]:
                status, ended_at = found[1], time.monotonic()
            if status is not None and not any(map(is_alive, everyone)):
                break
            time.sleep(POLL_SECONDS)
        if status is None or any(map(is_alive, everyone)):
            raise SystemExit(f"{kill}: alive after {GONE_SECONDS} s: {[pid for pid in everyone if is_alive(pid)]}")
        kill.ended_seconds, kill.gone_seconds = ended_at - killed_at, time.monotonic() - ended_at
        if kill.place != "run" and status:
            output = self._output.read_text()
            kill.named = re.search(ERRORS[kill.number][kill.place], output) is not None
            if not kill.named:
                kill.problems.append(f"ended with {os.waitstatus_to_exitcode(status)}:\n{output}")

    @property
    def _events(self) -> Path:
        return self.out / "tiny" / "events.jsonl"

    def events(self) -> list[dict[str, Any]]:
        """Those of the last attempt."""
        if not self._events.exists():
            return []
        lines = self._events.read_bytes()[self._read :].split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def step(self) -> int:
        """The last one that the last attempt reported."""
        return max((event["step"] for event in self.events() if event["kind"] == "metrics"), default=0)

    def newest(self) -> int:
        """The step of the newest sealed checkpoint."""
        seals = self.out.rglob(f"{checkpoint.PREFIX}*/{checkpoint.SEAL_NAME}")
        return max((checkpoint.step_of(seal.parent) for seal in seals if not seal.parent.name.startswith(".")), default=0)

    def resumed(self) -> int | None:
        """From which step the last attempt went on; None if it did not come to that, or the training was done before."""
        events = self.events()
        for event in events:
            if found := re.fullmatch(r"resuming from step (\d+)", event.get("text", "")):
                return int(found[1])
            if event.get("text", "").startswith("training was done before"):
                return None
            if event["kind"] == "metrics":
                return 0
        return None

    def content(self) -> dict[str, str]:
        """sha256 of every file of the result, its rows of metrics among them."""
        manifest = json.loads((self.out / "tiny/stages/sft/manifest.json").read_text())
        return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def check(
    folder: Path, part: str, chance: random.Random, *, kills: int, stops: int, report: Callable[[dict[str, Any]], None]
) -> None:
    """Kill so many times at each place, and stop each rank so often.

    Args:
        part: a strategy, or `command`, whose runs are started as users do.
        report: takes the figures after each result.
    """
    start, strategy = (start_command, "ddp") if part == "command" else (warm_run.start_warm, part)
    machine = folder / f"{part}.yaml"
    machine.write_text(f"training: {{processes: 2, strategy: {strategy}}}\n")
    arguments = ["run", str(folder / "project" / "recipe.yaml"), "--machine", str(machine), "--until", "sft", "--quick"]
    arguments += ["--set", "stages.sft.checkpoint_steps=1"]
    undisturbed = Run(arguments, folder / part, start_command)
    undisturbed.undisturbed()
    wanted = undisturbed.content()
    planned = [(place, signal.SIGKILL) for place in PLACES for _ in range(kills)]
    planned += [(place, signal.SIGSTOP) for place in PLACES[:2] for _ in range(stops)]
    chance.shuffle(planned)
    done: list[Kill] = []
    started, results, different, too_late = time.monotonic(), 0, 0, 0
    while planned:
        run = Run(arguments, folder / f"{part}-{results}", start)
        of_this: list[Kill] = []
        for _ in range(min(chance.randint(1, 3), len(planned))):
            kill = Kill(*planned[-1], chance.random())
            was_killed = run.disturb(kill, chance)
            if of_this:
                of_this[-1].resumed = run.resumed()
            if not was_killed:
                too_late += 1
                break
            of_this.append(kill)
            planned.pop()
        run.undisturbed()
        if of_this and of_this[-1].resumed is None:
            of_this[-1].resumed = run.resumed()
        results += 1
        content = run.content()
        others = sorted(name for name in content.keys() | wanted.keys() if content.get(name) != wanted.get(name))
        different += bool(others)
        for kill in of_this:
            kill.problems += [f"other bytes: {', '.join(others)}"] if others else []
            print(part, kill, flush=True)
        done += of_this
        shutil.rmtree(run.out)
        report(
            {
                "results": results,
                "different": different,
                "ended_before_the_kill": too_late,
                "seconds_per_kill": round((time.monotonic() - started) / max(1, len(done)), 1),
                "places": [summary for place in PLACES for number in ERRORS if (summary := summary_of(done, place, number))],
                "problems": [
                    f"{kill.place}, {kill.number.name}, step {kill.step}: {text}" for kill in done for text in kill.problems
                ],
            }
        )


def summary_of(kills: Sequence[Kill], place: str, number: signal.Signals) -> dict[str, Any]:
    """The figures of the kills of a place by a signal; empty if there were none."""
    found = [kill for kill in kills if (kill.place, kill.number) == (place, number)]
    if not found:
        return {}
    return {
        "place": place,
        "signal": number.name,
        "kills": len(found),
        "at_steps": {str(step): count for step, count in sorted(Counter(kill.step for kill in found).items())},
        "error_names_it": sum(kill.named is True for kill in found),
        "error_names_another": sum(kill.named is False for kill in found),
        "run_finished_all_the_same": sum(kill.named is None for kill in found) if place != "run" else 0,
        "most_steps_lost": max((kill.step - kill.resumed for kill in found if kill.resumed is not None), default=0),
        "seconds_to_the_end_median": round(statistics.median(kill.ended_seconds for kill in found), 2),
        "seconds_to_the_end_most": round(max(kill.ended_seconds for kill in found), 2),
        "seconds_outlived_most": round(max(kill.gone_seconds for kill in found), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=30, help="of each place, with ddp; a quarter with fsdp2, a tenth of the command"
    )
    parser.add_argument("--stops", type=int, default=2, help="of each rank")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=["ddp", "fsdp2", "command"], choices=["ddp", "fsdp2", "command"])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    found["machine"] = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    found["command"] = "python scripts/benchmarks/rank_faults.py"

    def report(part: str, asked: dict[str, int], figures: dict[str, Any]) -> None:
        found[part] = {"asked": asked, **figures}
        write_json(options.out, found)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm_run.import_libraries()
        # Computing would start threads in this process, which forks.
        os.waitpid(warm_run.in_a_fork(lambda: tiny_project(folder / "project") and None), 0)
        for part in options.parts:
            kills = max(1, options.kills // {"ddp": 1, "fsdp2": 4, "command": 10}[part])
            stops = 0 if part == "command" else options.stops
            asked = {"kills_of_each_place": kills, "stops_of_each_rank": stops, "seed": options.seed}
            check(folder, part, random.Random(options.seed), kills=kills, stops=stops, report=partial(report, part, asked))
    if problems := [problem for part in options.parts for problem in found[part]["problems"]]:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
