"""A run under faults, for tests and scripts: what it left on the disk, and what it may say when it ends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.config.inputs import MANIFEST_NAME
from align.store.artifact import METRICS_NAME
from align.store.seal import WORK_NAME
from align.testing import warm_run
from align.testing.processes import descendants, described_process, is_alive, wait_until_gone

END_SECONDS = 180.0
"""A run that has not ended by then hangs."""
OUTLIVE_SECONDS = 2.0
"""How long a process may outlive the run that it belongs to."""
REFUSALS = (2, 3, 4, 5)
"""Exit codes with which a command refuses; see docs/errors.md."""
MOST_LINES = 15
BUG = re.compile(r"Traceback \(most recent call last\)|bug in align")


@dataclass(frozen=True)
class End:
    """How a command ended."""

    code: int
    """Its exit code; the negative number of the signal that killed it."""
    output: str
    seconds: float
    outlived: tuple[str, ...] = ()
    """Processes below it that were alive `OUTLIVE_SECONDS` after it: number, state and name."""

    def problem(self, allowed: Sequence[int] = (0, *REFUSALS)) -> str:
        """What a user should not see; empty if all is well."""
        if BUG.search(self.output):
            return f"a traceback, exit code {self.code}:\n{self.output[-2500:]}"
        if self.code not in allowed:
            return f"exit code {self.code}:\n{self.output[-1500:]}"
        if self.outlived:
            return f"processes outlived the run: {'; '.join(self.outlived)}"
        return ""


class ChaosRun:
    """`align run` of a recipe, warm (see `align.testing.warm_run`), into one folder."""

    def __init__(self, recipe: Path, out: Path, *options: str) -> None:
        self.recipe, self.out = recipe, out
        self._arguments = ["run", str(recipe), "--out", str(out), *options]
        self.output = out.with_suffix(".txt")

    def start(self) -> int:
        """Start the command; the id of its process."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        return warm_run.start_warm(self._arguments, self.output)

    def wait(self, process: int, meanwhile: Callable[[], None] = lambda: None, at_end: Callable[[], None] = lambda: None) -> End:
        """Wait for its end. A run that hangs is killed, with exit code -9 and a line that says so.

        Args:
            meanwhile: called about every 10 ms.
            at_end: called when the run has ended, before it is looked for what is left of it.
        """
        started, below = time.monotonic(), set[int]()
        while not (found := os.waitpid(process, os.WNOHANG))[0]:
            below |= set(descendants(process))
            meanwhile()
            time.sleep(0.01)
            if time.monotonic() - started > END_SECONDS:
                for one in {process, *below}:
                    kill(one)
                os.waitpid(process, 0)
                return End(-signal.SIGKILL, f"{self._text()}\nit hung for {END_SECONDS:.0f} s", END_SECONDS)
        seconds = time.monotonic() - started
        at_end()
        outlived = wait_until_gone(below, OUTLIVE_SECONDS)
        described = tuple(f"{one} {described_process(one)}" for one in outlived)
        for one in outlived:
            kill(one)
        return End(os.waitstatus_to_exitcode(found[1]), self._text(), seconds, described)

    def run(self) -> End:
        """Run the command to its end."""
        return self.wait(self.start())

    def content(self) -> dict[str, str]:
        """sha256 of each file of the results of the run, by stage and path, as it is on the disk now.

        Files that a run copies out of its store are among them, and what is wrong: files that the manifest does not list.
        """
        found: dict[str, str] = {}
        run = next((path.parent for path in self.out.glob("*/stages")), None)
        if run is None:
            return found
        for link in sorted((run / "stages").iterdir()):
            manifest = json.loads((link / MANIFEST_NAME).read_bytes())
            listed = set(manifest["files"]) | {MANIFEST_NAME}
            for name, entry in manifest["files"].items():
                digest = sha256(link / name)
                found[f"{link.name}/{name}"] = digest if digest == entry["sha256"] else f"{digest}, not as its manifest says"
            found |= {f"{link.name}/{name}": "not listed" for name in files_below(link) if name not in listed}
        copies = {name: run / name for name in ("results.json", "report.html") if (run / name).exists()}
        for name, path in copies.items():
            found[name] = "as in the store" if sha256(path) == found.get(f"compare/{name}") else "not as in the store"
        return found

    def _text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def differences(found: dict[str, str], wanted: dict[str, str], *, interrupted: bool) -> list[str]:
    """Names of files that differ from those of an undisturbed run, or that it does not have.

    Args:
        wanted: what two undisturbed runs have in common; other files are compared with their manifest alone.
        interrupted: leave out curves, which are means since the last line of the log: an interruption may split them.
    """
    names = {name for name in wanted if not (interrupted and name.endswith(METRICS_NAME))}
    different = {name for name in names if found.get(name) != wanted[name]}
    return sorted(different | {name for name, value in found.items() if value.startswith("not ") or ", not " in value})


def files_below(folder: Path) -> Iterator[str]:
    """Paths of all files of an entry, without its work folder."""
    root = folder.resolve()
    for parent, folders, names in os.walk(root):
        if Path(parent) == root and WORK_NAME in folders:
            folders.remove(WORK_NAME)
        for name in names:
            yield str(Path(parent, name).relative_to(root))


def sha256(path: Path) -> str:
    """Hexadecimal; 'missing' without a file."""
    if not path.is_file():
        return "missing"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def kill(process: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal to a process that may be gone; whether it was there."""
    try:
        os.kill(process, number)
    except (ProcessLookupError, PermissionError):
        return False
    return is_alive(process) or number == signal.SIGKILL
