"""Processes started from a script, a pipe or `-c`, with no `if __name__ == "__main__"`: none of them runs the script again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path

with open("ran", "a") as file:
    file.write("x")
sys.path.append({here!r})
import executor_work, launcher_work
from align.runtime.executor import Processes
from align.runtime.job import Job
from align.runtime.launcher import Forked, Spawned, run_one
from align.runtime.signals import StopSignals

for launcher in (Spawned(), Forked("json", {{}})):
    job = Job("job", launcher_work.note_process_and_variable, Path("log"), {{"ALIGN_TEST": "set"}})
    run_one(launcher, job, lambda event: print(event.text), StopSignals())
Processes(2).map(executor_work.square, [3, 4], on_done=lambda item, result: print(result), in_order=True)
"""


@pytest.mark.parametrize("arguments", [["script.py"], ["-"], ["-m", "script"]], ids=["script", "pipe", "module"])
def test_a_script_without_a_guard_runs_once(arguments: list[str], tmp_path: Path) -> None:
    script = SCRIPT.format(here=str(Path(__file__).parent))
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, *arguments], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, _, second, _, *squares = done.stdout.split()
    assert first != second
    assert squares == ["9", "16"]
    assert (tmp_path / "ran").read_text() == "x"
