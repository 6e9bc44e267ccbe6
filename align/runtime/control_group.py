"""The control groups of Linux that this process is in: containers and batch systems limit memory and cores by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


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
