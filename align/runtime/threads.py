"""Threads of a process that computes on a CPU: how many there are, and what one does while it waits for the others."""

from __future__ import annotations

import os
from collections.abc import Mapping

from align.runtime.control_group import cpu_quota

POLICY, THREADS = "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
SPINNING = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how long a thread spins before it sleeps."""


def thread_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set before torch is imported; what the user has set stays.

    torch's threads meet after every operation. By default one that waits spins, and takes its core from the very thread that it
    waits for where another process has the other core: a training step then takes many times as long. A thread that sleeps
    costs a few microseconds each time (scripts/benchmarks/busy_machine.py).

    In a container with a quota, torch starts a thread for each core of the computer, and the kernel stops all of them when the
    quota is used up. Their number does not follow from the load of the computer: it decides the order of sums, and with it the
    last bits of every result.
    """
    chosen = {} if any(name in environment for name in SPINNING) else {POLICY: "PASSIVE"}
    quota = None if THREADS in environment else cpu_quota()
    if quota is not None and quota < _cores():
        chosen[THREADS] = str(max(1, int(quota)))
    return chosen


def available_threads() -> int:
    """Threads that compute at the same time in a process without a share: as the user says, else one for each usable core."""
    chosen = os.environ.get(THREADS, "")
    return max(1, int(chosen)) if chosen.isdigit() else usable_cores()


def usable_cores() -> int:
    """Cores that processes of this one may use at a time: its affinity, and the limit of its control groups."""
    quota = cpu_quota()
    return _cores() if quota is None else max(1, min(_cores(), int(quota)))


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
