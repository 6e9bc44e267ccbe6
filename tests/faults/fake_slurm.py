"""Slurm's commands, as far as the script of a job of one node calls them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

JOB_ID = 4711
PROGRAMS = {
    "sbatch": 'echo "$@" >"$FAKE_SLURM/submitted"\necho "Submitted batch job $FAKE_SLURM_JOB"',
    "scontrol": """\
case "$1 $2" in
  "requeue $FAKE_SLURM_JOB") touch "$FAKE_SLURM/requeued" ;;
  *) echo "scontrol $*" >&2; exit 1 ;;
esac""",
}


class FakeSlurm:
    """A folder of programs in front of PATH. Attempts of a job are started by the test, as Slurm would."""

    def __init__(self, folder: Path) -> None:
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "FAKE_SLURM": str(folder), "FAKE_SLURM_JOB": str(JOB_ID)}

    @property
    def submitted(self) -> Path:
        """The script that was given to sbatch."""
        return Path((self._folder / "submitted").read_text().strip())

    def take_requeue(self) -> bool:
        """Whether the job was requeued since this was asked last."""
        mark = self._folder / "requeued"
        requeued = mark.exists()
        mark.unlink(missing_ok=True)
        return requeued

    def start(self, script: Path, *, restarts: int) -> subprocess.Popen[bytes]:
        """Start an attempt of a job, with standard output in the file that the script names."""
        prefix = '#SBATCH --output="'
        (line,) = (line for line in script.read_text().splitlines() if line.startswith(prefix))
        output = Path(line.removeprefix(prefix).rstrip('"').replace("%j", str(JOB_ID)))
        variables = {"SLURM_JOB_ID": str(JOB_ID)}
        if restarts:
            variables["SLURM_RESTART_COUNT"] = str(restarts)
        with output.open("ab") as log:
            process = subprocess.Popen(
                ["bash", script],
                env={**self.environment, **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill what is left of every attempt."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
