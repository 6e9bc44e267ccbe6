"""Processes of this machine as Linux shows them in /proc, for tests and benchmarks that kill some and look at what is left."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.05


def children(process: int) -> list[int]:
    """Those that a process started and that have not been waited for, oldest first; none of a process that is gone."""
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError):  # the thread has
                found += map(int, Path(f"/proc/{process}/task/{thread}/children").read_text().split())
    return sorted(found)


def descendants(process: int) -> list[int]:
    """Its children, theirs, and so on."""
    found: list[int] = []
    for child in children(process):
        found += [child, *descendants(child)]
    return found


def command_of(process: int) -> bytes:
    """Its command line, with zeros between the words; empty for a process that is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def is_alive(process: int) -> bool:
    """Whether it runs. One that has ended and was not waited for does not: nothing of it is left but its exit code."""
    try:
        # The state follows the name, which stands in brackets and may contain some.
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def described_process(process: int) -> str:
    """Its state, as in `ps`, the name of its main thread, the time that it has worked, and its command line; for messages."""
    try:
        name, fields = Path(f"/proc/{process}/stat").read_text().partition("(")[2].rpartition(")")[::2]
    except OSError:
        return "gone"
    state, *_, user, system = fields.split()[:13]
    seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return f"{state} {name} {seconds:.1f} s {command_of(process)[-80:].decode(errors='replace')!r}"


def wait_until_gone(processes: Collection[int], seconds: float) -> list[int]:
    """Wait until they have ended, at most so long; those that are still alive."""
    until = time.monotonic() + seconds
    while (left := [process for process in processes if is_alive(process)]) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    return left


def training_of(run: int) -> dict[str, int]:
    """The processes of a training that ranks share: `stage`, which started them, and `rank 0`, `rank 1` and so on.

    Empty until the ranks exist.

    Args:
        run: the process of the run, whose stages are forked from its fork server.
    """
    for server in children(run):
        for stage in children(server):
            if ranks := children(stage):
                return {"stage": stage, **{f"rank {number}": rank for number, rank in enumerate(ranks)}}
    return {}
