"""The machine's memory (of the GPU or of the computer), its free disk, and the arithmetic that `auto` means on it.

torch knows this too, but takes a second to import; the driver and the kernel's files answer faster.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from align.runtime.control_group import memory_limits, numbers
from align.runtime.device import Device, torch_cuda, visible_gpu_and_line
from align.runtime.gpus import visible_gpus
from align.runtime.share import Share
from align.runtime.spread import Spread


@dataclass(frozen=True)
class Machine:
    """Where stages would run."""

    device: Device
    name: str
    """Of the GPU; `memory` without one."""
    total_bytes: int
    """Memory of the GPU or of the computer, or the limit of the process's control group where that is less."""
    free_bytes: int
    """The part of it that is free now."""
    free_disk_bytes: int
    has_bfloat16: bool
    """Whether `precision: auto` means bfloat16: on a GPU that computes it natively, never on a CPU."""
    device_line: str | None = None
    """See `runtime.device.device_line`."""
    num_gpus: int = 0
    """Visible ones; the numbers above are those of the first."""

    def free_for(self, spread: Spread) -> int:
        """Memory that is free now for each process of a training: of its own GPU, or its part of the computer's."""
        return self.free_bytes // (spread.processes_each if self.device == "cpu" else 1)

    def part(self, share: Share) -> Machine:
        """What a stage sees of it that has this share of its GPUs."""
        return self if share.gpus is None else replace(self, num_gpus=len(share.gpus))

    def room_for(self, spread: Spread) -> int:
        """Memory that there is for each process, free or not."""
        return self.total_bytes // (spread.processes_each if self.device == "cpu" else 1)


def read_machine(folder: Path) -> Machine:
    """This machine. `folder`, or the nearest parent that exists, is where results go."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    disk = shutil.disk_usage(folder).free
    total, free = _memory()
    gpu, line = visible_gpu_and_line()
    # A build of torch for CPUs does not use a GPU that is there; a driver that is too old stops a run (`refuse_unusable_gpu`).
    if torch_cuda() is not None and gpu is not None:
        size = gpu.total_bytes
        total, free = (total, free) if size is None else (size, size - gpu.used_bytes)
        return Machine("cuda", gpu.name, total, free, disk, gpu.has_bfloat16, line, max(1, len(visible_gpus())))
    return Machine("cpu", "memory", total, free, disk, has_bfloat16=False, device_line=line)


def _memory() -> tuple[int, int]:
    """Total and available bytes of the computer, or of the tightest control group that this process is in."""
    found = numbers(Path("/proc/meminfo"))
    if "MemTotal:" in found:
        total, free = found["MemTotal:"] * 1024, found.get("MemAvailable:", found["MemTotal:"]) * 1024
    else:
        total = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # In a container /proc/meminfo shows the host's memory.
    for limit, left in memory_limits():
        total, free = min(total, limit), min(free, left)
    return total, free
