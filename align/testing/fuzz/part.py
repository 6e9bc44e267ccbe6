"""Runs inputs of a target in a process of its own: one that hangs, is killed or takes too much memory names its input."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from ctypes import c_longlong
from pathlib import Path
from typing import Any

from align.testing.fuzz import TARGETS
from align.testing.fuzz.target import Counts, LongTarget, input_of, try_input

HANG_SECONDS = 30.0
"""After which a process is killed that has neither gone on to the next input nor said that it gets on with this one."""
START_SECONDS = 120.0
MEMORY_BYTES = 8 << 30
"""Address space of a process."""
GROWTH_BYTES = 1 << 30
"""Most memory that the inputs of a part may take beyond that of the first hundred."""
REPORT_EVERY = 200


def run_part(name: str, seed: int, numbers: range, keep: Path | None = None) -> Counts:
    """The outcomes of the inputs with these numbers.

    Args:
        keep: folder for inputs with findings.
    """
    counts, start, began = Counts(), numbers.start, time.monotonic()
    while start < numbers.stop:
        start = _in_process(name, seed, range(start, numbers.stop), counts, keep)
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


def _in_process(name: str, seed: int, numbers: range, counts: Counts, keep: Path | None) -> int:
    """Add the outcomes up to the first input that the process does not survive; returns the number to go on from."""
    context = multiprocessing.get_context("spawn")
    current: Any = context.Value(c_longlong, -1, lock=False)
    beats: Any = context.Value(c_longlong, 0, lock=False)
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, seed, numbers, current, beats, send, keep), daemon=True)
    process.start()
    send.close()
    last, since = (-1, 0), time.monotonic()
    try:
        while True:
            try:
                if receive.poll(1.0):
                    counts.add(receive.recv())
            except EOFError:
                break
            if (current.value, beats.value) != last:
                last, since = (current.value, beats.value), time.monotonic()
            if time.monotonic() - since > (HANG_SECONDS if last[0] >= 0 else START_SECONDS):
                process.kill()
                break
    finally:
        process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()
    if process.exitcode == 0:
        return numbers.stop
    number = int(current.value)
    if number < 0:
        raise RuntimeError(f"the target {name} could not be made: its process ended with {process.exitcode}")
    why = "hangs" if time.monotonic() - since > HANG_SECONDS else f"ends the process ({process.exitcode})"
    counts.add(Counts(inputs=1, findings=[f"{name} {seed} {number}: {why}"]))
    return number + 1


def _work(name: str, seed: int, numbers: range, current: Any, beats: Any, send: Any, keep: Path | None) -> None:
    # In memory where there is such a place: every input is a file.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="align-fuzz-", dir=shared) as folder:
        tempfile.tempdir = folder  # of the parsers, too
        own = Path(folder, name)
        own.mkdir()
        target = TARGETS[name](own)
        if isinstance(target, LongTarget):

            def beat() -> None:
                beats.value += 1

            target.on_progress = beat
        with suppress(ValueError):  # a lower limit holds already
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        counts, first_peak = Counts(), 0
        for number in numbers:
            current.value = number
            data = input_of(target, name, seed, number)
            if found := try_input(target, data, counts):
                counts.findings.append(f"{name} {seed} {number}: {found}")
                if keep is not None:
                    _keep(keep, f"{name}-{seed}-{number}", data)
            if number - numbers.start == 100:
                first_peak = _peak_bytes()
            if counts.inputs == REPORT_EVERY:
                send.send(counts)
                counts = Counts()
        if first_peak and (growth := _peak_bytes() - first_peak) > GROWTH_BYTES:
            counts.findings.append(f"{name} {seed} {numbers.start}-{numbers.stop}: memory grew by {growth >> 20:,} MiB")
        send.send(counts)
        send.close()


def _keep(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def replay(name: str, inputs: Iterable[bytes]) -> tuple[Counts, list[str]]:
    """Read inputs in this process; returns the outcomes, and what was found with the input's number."""
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="align-fuzz-") as folder:
        target = TARGETS[name](Path(folder))
        for number, data in enumerate(inputs):
            if found := try_input(target, data, counts):
                counts.findings.append(f"{name} {number}: {found}")
    return counts, counts.findings
