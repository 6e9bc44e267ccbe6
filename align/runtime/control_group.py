"""The control groups of Linux that this process is in: containers and batch systems limit memory and cores by them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
COUNTERS = Path("/proc/vmstat")
"""What the kernel has counted since the machine started, in containers too."""
MEMORY_FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
"""Names of limit and usage, by version."""
KILLS_FILES = {1: "memory.oom_control", 2: "memory.events"}
KILLS = "oom_kill"
"""Line with the processes that were killed for lack of memory, in both files and among the counters."""
NO_LIMIT = 1 << 60
"""From here on it is how version 1 writes that there is none."""


def group_folders(controller: str) -> Iterator[tuple[int, Path]]:
    """Version of the interface (1 or 2) and folder, for this process's group and every group above it; none off Linux."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Version 2 has one hierarchy with an empty name; version 1 has one for each controller.
        if controllers == "":
            version, root = 2, ROOT
        elif controller in controllers.split(","):
            version, root = 1, ROOT / controller
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            yield version, place
            if place == root:
                break


def cpu_quota() -> float | None:
    """Cores that this process and its group may use on average, as the tightest group says; None without a limit."""
    found = [quota for version, folder in group_folders("cpu") if (quota := _quota(version, folder)) is not None]
    return min(found, default=None)


def _quota(version: int, folder: Path) -> float | None:
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        # Without a limit the quota is `max` or -1.
        return int(quota) / int(period) if quota.isdigit() else None
    except (OSError, ValueError):
        return None


def memory_limits() -> Iterator[tuple[int, int]]:
    """Limit and free part of it in bytes, for this process's group and every group above it that has a limit."""
    for version, folder in group_folders("memory"):
        limit_name, usage_name = MEMORY_FILES[version]
        try:
            limit, usage = int((folder / limit_name).read_text()), int((folder / usage_name).read_text())
        except (OSError, ValueError):
            continue
        # The kernel counts cached files as used, but gives them up when memory is needed.
        stat = numbers(folder / "memory.stat")
        reclaimable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        if limit < NO_LIMIT:
            yield limit, limit - max(usage - reclaimable, 0)


MAYBE = "Signal 9 often means that the machine ran out of memory. "
NEEDS = "`align plan --memory` shows what each training needs. "


class MemoryKills:
    """Processes that the kernel kills for lack of memory from now on."""

    def __init__(self) -> None:
        self._group, self._machine = _kills()

    def hint(self, code: int, *, is_here: bool = True) -> str:
        """What the exit code of a process that has started since says about memory.

        Args:
            is_here: the process was one of this machine.
        Returns:
            Sentences with a space after each, or nothing.
        """
        if code != -signal.SIGKILL:
            return ""
        group, machine = _kills()
        if not is_here or None in (machine, self._machine):
            return MAYBE
        if group != self._group:
            limit = min((limit for limit, _ in memory_limits()), default=None)
            has = "" if limit is None else f", which may have {limit / 2**30:.1f} GiB"
            return f"The kernel killed a process for lack of memory in this container or batch job{has}. {NEEDS}"
        if machine != self._machine:
            return f"The kernel killed a process of this machine for lack of memory meanwhile. {NEEDS}"
        return "The kernel killed nothing for lack of memory: a person, a batch system or another program did it. "


def _kills() -> tuple[int | None, int | None]:
    """Processes killed so far in this process's group, and on the machine; None where it is not known."""
    found = (numbers(folder / KILLS_FILES[version]).get(KILLS) for version, folder in group_folders("memory"))
    # In a container without a view of its own, the nearest group that it sees is its own.
    return next((count for count in found if count is not None), None), numbers(COUNTERS).get(KILLS)


def numbers(path: Path) -> dict[str, int]:
    """First word and number of every line of one of the kernel's files; empty if it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {found[0]: int(found[1]) for found in words if len(found) >= 2 and found[1].isdigit()}
