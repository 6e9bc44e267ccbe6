"""Commands of align while a folder is mounted read-only, in a process with mounts of its own; see `run_read_only`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from align.cli.main import main
from align.testing.chaos_run import End


class NotPossible(RuntimeError):
    """This machine does not let this user mount anything; the reason."""


def run_read_only(folder: Path, commands: Sequence[Sequence[str]]) -> list[End]:
    """Run commands one after the other, and tell how each ended. Nothing else sees the mount, which ends with the process.

    Args:
        folder: what is read-only, with everything below it.
        commands: the arguments of each.
    Raises:
        NotPossible: if nothing can be mounted here.
    """
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    arguments = ["unshare", "--mount", *user, sys.executable, "-m", __name__, str(folder)]
    try:
        done = subprocess.run(arguments, input=json.dumps(commands), capture_output=True, text=True, timeout=300, check=True)
    except FileNotFoundError as error:
        raise NotPossible("there is no unshare") from error
    except subprocess.CalledProcessError as error:
        raise NotPossible(error.stderr.strip()[-300:]) from error
    return [End(code, output, 0.0) for code, output in json.loads(done.stdout)]


def _ends(commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    ends = []
    for arguments in commands:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main(arguments)
        ends.append((code, output.getvalue()))
    return ends


if __name__ == "__main__":
    place = sys.argv[1]
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    print(json.dumps(_ends(json.load(sys.stdin))))
