"""Submits a job that was written."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from align.errors import EnvironmentProblem
from align.pipeline.launch.write import Launch


def submit(launch: Launch, folder: Path) -> str:
    """Run the command that submits a job, in `folder`, and return what it printed.

    Raises:
        EnvironmentProblem: if there is no such command, or it refuses the job.
    """
    program, command = launch.submit[0], shlex.join(launch.submit)
    if shutil.which(program) is None:
        raise EnvironmentProblem(
            f"{program} is not installed on this machine, so that the job cannot be submitted from here",
            hint=f"The job is written. Where {program} is installed: {command}",
        )
    done = subprocess.run(launch.submit, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or "without a message"
        raise EnvironmentProblem(
            f"{program} refused the job (code {done.returncode}):\n{said}",
            hint=f"The job is written; to submit it again: {command}",
        )
    return done.stdout.strip()
