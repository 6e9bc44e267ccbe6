"""What a fuzz target is, and how the outcome of an input is found out."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol, runtime_checkable

from align.errors import MAX_ERROR_LINES, AlignError

ACCEPTED = "accepted"
MUCH = "much to read"
"""Outcome of an input that becomes large when it is unpacked: it may take as long as its rows."""
MOST_SECONDS = 2.0
"""An input for which the processor works longer is a finding; waiting is one for `HANG_SECONDS` of `align.testing.fuzz.part`."""
SHOWN_FINDINGS = 1_000


class Finding(AssertionError):
    """An input was read in a way that was not promised."""


class Target(Protocol):
    """A parser under test. Made once in a process, with a folder of its own."""

    def make(self, random: Random) -> bytes:
        """An input: a first line that names its form, then its bytes."""
        ...

    def read(self, data: bytes) -> str:
        """Have the parser read an input: `accepted`, or the name of the documented refusal. Any exception is a finding."""
        ...


@runtime_checkable
class LongTarget(Target, Protocol):
    """A target of which one input may be much to read."""

    on_progress: Callable[[], None]
    """Called while it reads: an input that gets on does not hang."""


def refusal(error: AlignError) -> str:
    """Name of an error's class, once its text is as promised.

    Raises:
        Finding: if it is longer than an error may be, or empty.
    """
    shown = error.render()
    if not 1 <= shown.count("\n") + 1 <= MAX_ERROR_LINES:
        raise Finding(f"the error has {shown.count(chr(10)) + 1} lines")
    if not error.message.strip():
        raise Finding("the error says nothing")
    return type(error).__name__


@dataclass
class Counts:
    """What came of some inputs of a target."""

    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By the name of the error."""
    findings: list[str] = field(default_factory=list)
    """Each begins with target, seed and number of its input."""
    fixed: int = 0
    """Former findings that the present code reads as promised."""
    seconds: float = 0.0

    def add(self, other: Counts) -> None:
        """Add those of other inputs."""
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.refused += other.refused
        self.findings = [*self.findings, *other.findings][:SHOWN_FINDINGS]
        self.fixed += other.fixed
        self.seconds = round(self.seconds + other.seconds, 1)


@contextmanager
def changed_file(folder: Path, contents: Mapping[str, bytes], data: bytes) -> Iterator[None]:
    """A folder of which one file, named by the first line of an input, has the rest of the input; as before at the end.

    Args:
        contents: of the files that may be named.
    """
    head, _, content = data.partition(b"\n")
    file = folder / head.decode()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(contents[file.name])


def input_of(target: Target, name: str, seed: int, number: int) -> bytes:
    """An input by its number; the same on every machine."""
    digest = hashlib.sha256(f"{name} {seed} {number}".encode()).digest()
    return target.make(Random(int.from_bytes(digest[:8], "big")))


def try_input(target: Target, data: bytes, counts: Counts) -> str | None:
    """Read an input and count the outcome.

    Returns:
        What was found, if the parser did not keep its promise.
    """
    began = time.process_time()
    found, outcome = None, ""
    try:
        outcome = target.read(data)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {str(error)[:200]!r} at {Path(where.filename).name}:{where.lineno}"
    else:
        if outcome == ACCEPTED:
            counts.accepted += 1
        else:
            counts.refused[outcome] += 1
    if found is None and outcome != MUCH and (seconds := time.process_time() - began) > MOST_SECONDS:
        found = f"took {seconds:.1f} seconds"
    counts.inputs += 1
    return found
