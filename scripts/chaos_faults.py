"""The faults of chaos.py, and a case: one folder of results that they happen to."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.testing.chaos_run import REFUSALS, ChaosRun, End, differences, kill
from align.testing.processes import children, descendants

MOST_KILLS = 30
"""Kills of one case; then the command goes on undisturbed."""
EARLY_SHARE, EARLY_PART = 0.9, 1 / 15
"""Most kills come soon after a start, in the mean after this part of an undisturbed run. The command goes on where it was, so
later kills still meet every stage."""
MOST_DAMAGES = 10
"""Files of one case, at most one of each result: two that are found together could hide that one alone is not."""
AT_ONCE_SECONDS = 0.02
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP)


@dataclass
class Case:
    """One folder of results, and what happened to it."""

    folder: Path
    name: str
    chance: random.Random
    recipe: str
    options: list[str]
    """With which it is run."""
    seconds: float
    """An undisturbed run takes."""
    size_bytes: int
    """Of all that it leaves."""
    wanted: dict[str, str]
    faults: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: int = 0
    silent: bool = False
    identical: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def place(self) -> Path:
        return self.folder / f"case-{self.name}"

    def run_in(self, out: Path) -> ChaosRun:
        return ChaosRun(Path(self.recipe), out, *self.options)

    def note(self, end: End, allowed: Iterable[int]) -> End:
        """Look at the end of a disturbed command."""
        if problem := end.problem(tuple(allowed)):
            self.problems.append(problem)
        self.refused += end.code in REFUSALS
        return end

    def finish(self, run: ChaosRun, *, interrupted: bool = True) -> None:
        """The same command, undisturbed, and the comparison."""
        end = run.run()
        said = end.code in REFUSALS and not end.problem()
        if said:  # it named what is wrong; the command after that goes on
            self.refused += 1
            end = run.run()
        if end.code:
            self.problems.append(f"the command did not go on: {end.problem((0,))}")
            return
        self.note(end, (0,))
        if others := differences(run.content(), self.wanted, interrupted=interrupted):
            self.silent = True
            self.problems.append(f"other bytes: {', '.join(others[:6])}")
        else:
            self.identical = True

    def kill_during(self, run: ChaosRun, kills: Iterator[tuple[float, str]]) -> End:
        """Let the command run, and kill what each of `kills` says, so many seconds after the start or the kill before."""
        process, (seconds, place) = run.start(), next(kills)
        due = time.monotonic() + seconds

        def strike() -> None:
            nonlocal due, place
            if time.monotonic() < due:
                return
            self.faults.append(f"kill of {place}")
            for one in self._chosen(process, place):
                kill(one)
            seconds, place = next(kills, (math.inf, ""))
            due = time.monotonic() + seconds

        return run.wait(process, strike)

    def _chosen(self, process: int, place: str) -> list[int]:
        below = descendants(process)
        if place == "all":
            return [process, *below]
        if place == "run":
            return [process]
        servers = children(process)
        found = servers if place == "fork server" else [one for one in below if one not in servers]
        return [self.chance.choice(found)] if found else [process]

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.name,
            "faults": self.faults,
            "identical": self.identical,
            "refused": self.refused,
            "silent": self.silent,
            "problems": self.problems,
            "seconds": time.monotonic() - self.began,
        }


def kill_some(case: Case) -> None:
    """Kill processes of runs of one folder until one comes to its end, or often enough."""
    run, chance = case.run_in(case.place / "out"), case.chance

    def kills() -> Iterator[tuple[float, str]]:
        while len(case.faults) < MOST_KILLS:
            late, early = chance.uniform(0, case.seconds), chance.expovariate(1 / (EARLY_PART * case.seconds))
            place = chance.choice(["run", "stage", "stage", "fork server", "all"])
            yield early if chance.random() < EARLY_SHARE else late, place

    while len(case.faults) < MOST_KILLS:
        if case.note(case.kill_during(run, kills()), (0, *REFUSALS, -signal.SIGKILL)).code == 0:
            break
    case.finish(run)


def damage_some(case: Case, folder: Path, interrupted: int) -> None:
    """Damage files of a finished or interrupted run."""
    which = case.chance.choice(["finished", "finished", *(f"interrupted-{number}" for number in range(interrupted))])
    out = case.place / "out"
    shutil.copytree(folder / which, out, symlinks=True)
    # Links of runs are relative, so the copy is whole; what it remembers of the first one's files is of other paths.
    files = sorted(path for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    case.chance.shuffle(files)
    one_of_each = {path.relative_to(out).parts[:2]: path for path in files}
    for path in list(one_of_each.values())[: case.chance.randint(1, MOST_DAMAGES)]:
        name, damage = case.chance.choice(sorted(DAMAGES.items()))
        status = path.stat()
        path.chmod(status.st_mode | 0o200)
        damage(path, case.chance)
        keeps = case.chance.random() < 0.5
        if keeps and path.is_file() and not path.is_symlink():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        kind = _class_of(re.sub(r"-[0-9a-f]{16}", "", str(path.relative_to(out))))
        case.faults.append(f"{name}{', old time' if keeps else ''}: {kind}")
    case.finish(case.run_in(out), interrupted=which != "finished")


def _class_of(path: str) -> str:
    """What kind of file of a run it is."""
    name = path.rpartition("/")[2]
    if name.endswith(".safetensors"):
        return "weights"
    if name in ("manifest.json", "hashes.json", "results.json", "report.html", "events.jsonl", "run.log", "rows.jsonl"):
        return name
    return next((kind for part, kind in (("/work/", "work"), ("/model/", "model"), (".lock", "lock")) if part in path), "other")


def _write(path: Path, content: bytes) -> None:
    """Into the file itself, as a disk or an editor does."""
    with path.open("r+b") as stream:
        stream.truncate(0)
        stream.write(content)


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(min(len(content), chance.choice([1, 1, 16]))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    _write(path, bytes(content))


def _truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(max(1, path.stat().st_size)))


def _zeros(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        start = chance.randrange(len(content))
        stop = min(len(content), start + chance.choice([8, 512, 4096]))
        content[start:stop] = bytes(stop - start)
    _write(path, bytes(content))


def _append(path: Path, chance: random.Random) -> None:
    with path.open("ab") as stream:
        stream.write(chance.choice([b"\n", b"{}\n", b"\0" * 64, b"more"]))


def _edit_number(path: Path, chance: random.Random) -> None:
    """Another digit somewhere in a text: still a file that can be read."""
    content = bytearray(path.read_bytes())
    digits = [place for place, byte in enumerate(content[:65536]) if 48 <= byte <= 57]
    if digits:
        place = chance.choice(digits)
        content[place] = 48 + (content[place] - 48 + chance.randint(1, 9)) % 10
    _write(path, bytes(content))


def _folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(chance.choice(["/dev/null", "/nowhere/at/all", "/dev/zero"]))


def _extra(path: Path, chance: random.Random) -> None:
    path.with_name(f"extra{path.suffix}").write_bytes(chance.randbytes(100))


def _swap(path: Path, chance: random.Random) -> None:
    """With a file of the same name elsewhere."""
    root = next(parent for parent in path.parents if parent.name == "out")
    others = sorted(other for other in root.rglob(path.name) if other != path and other.is_file() and not other.is_symlink())
    if others:
        other = chance.choice(others)
        mine, theirs = path.read_bytes(), other.read_bytes()
        other.chmod(0o644)
        _write(path, theirs)
        _write(other, mine)


def _empty_json(path: Path, _: random.Random) -> None:
    """A file that is valid and says nothing."""
    _write(path, b"{}")


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "flipped bits": _flip,
    "truncated": _truncate,
    "zeros": _zeros,
    "appended": _append,
    "another digit": _edit_number,
    "removed": lambda path, _: path.unlink(),
    "a folder in its place": _folder,
    "a link in its place": _link,
    "a file beside it": _extra,
    "swapped": _swap,
    "emptied": _empty_json,
}


def full_disk(case: Case) -> None:
    """A disk that becomes full, and is made larger: a file system in memory, for which the script must run as root."""
    place = case.place / "disk"
    place.mkdir(parents=True)
    size = int(case.size_bytes * case.chance.uniform(0.05, 0.9))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True).returncode:
        case.faults.append("full disk: not possible here")
        case.identical = True
        return
    try:
        run = case.run_in(place / "out")
        run.output = case.place / "out.txt"
        case.note(run.run(), (0, 4))
        case.faults.append("full disk")
        subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
        case.finish(run)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def signals(case: Case) -> None:
    """Signals to the run, at any moment."""
    chosen = case.chance.choice(
        [
            [signal.SIGINT],
            [signal.SIGTERM],
            [signal.SIGHUP],
            [signal.SIGINT, signal.SIGINT],
            [signal.SIGUSR1],
            [signal.SIGTERM, signal.SIGTERM],
            [signal.SIGSTOP, signal.SIGCONT],
        ]
    )
    run = case.run_in(case.place / "out")
    process, due, left = run.start(), time.monotonic() + case.chance.uniform(0.3, case.seconds), list(chosen)
    pause = case.chance.choice([AT_ONCE_SECONDS, 1.0])

    def strike() -> None:
        nonlocal due
        if left and time.monotonic() >= due:
            kill(process, left.pop(0))
            due = time.monotonic() + pause

    case.note(run.wait(process, strike), (0, *STOPPED))
    case.faults.append("+".join(number.name for number in chosen))
    case.finish(run)


def two_runs(case: Case) -> None:
    """The same command twice at the same time; one may be killed."""
    first, second = case.run_in(case.place / "out"), case.run_in(case.place / "out")
    second.output = case.place / "second.txt"
    one, other = first.start(), second.start()
    due = time.monotonic() + case.chance.uniform(0, case.seconds) if case.chance.random() < 0.5 else float("inf")

    def strike() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = float("inf")
            kill(one)

    case.note(first.wait(one, strike), (0, 4, -signal.SIGKILL))
    case.note(second.wait(other), (0, 4))
    case.faults.append("two runs")
    case.finish(first)


def stalls(case: Case) -> None:
    """Processes that stand still for a while, as on a slow disk or a machine with too much to do."""
    run = case.run_in(case.place / "out")
    process, stopped, due = run.start(), list[int](), time.monotonic() + case.chance.uniform(0, 2)

    def strike() -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        if stopped:
            kill(stopped.pop(), signal.SIGCONT)
        elif below := [process, *descendants(process)]:
            stopped.append(case.chance.choice(below))
            kill(stopped[0], signal.SIGSTOP)
        due = time.monotonic() + case.chance.uniform(0.1, 1.0)

    def go_on() -> None:
        for one in stopped:
            kill(one, signal.SIGCONT)

    case.note(run.wait(process, strike, go_on), (0,))
    case.faults.append("stalls")
    case.finish(run)


def clocks(case: Case) -> None:
    """Files of an interrupted run from a clock that was years ahead or behind."""
    run = case.run_in(case.place / "out")
    case.kill_during(run, iter([(case.chance.uniform(0, case.seconds), "all")]))
    then = time.time() + case.chance.choice([-10, 10]) * 365 * 86400
    for path in run.out.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (then, then))
    case.faults = ["clock"]
    case.finish(run)


OTHERS = (full_disk, signals, two_runs, signals, stalls, clocks)
