"""Work for workers; apart from the tests, so that a process need not import pytest to do it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from align.errors import DataError
from align.runtime.gpus import GPU_VARIABLE


def square(item: int) -> int:
    return item * item


def slow_when_even(item: int) -> int:
    time.sleep(0.1 if item % 2 == 0 else 0.0)
    return item * item


@dataclass
class Remembering:
    """Work with a state: the items that this copy has seen."""

    seen: list[int] = field(default_factory=list)

    def __call__(self, item: int) -> tuple[int, int]:
        self.seen.append(item)
        time.sleep(0.02)
        return os.getpid(), len(self.seen)


class ThatCannotTravel(Exception):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def fail(item: int) -> int:
    if item == 3:
        raise DataError("rows.jsonl:3: wrong", hint="Correct it.")
    return item


def fail_unforeseen(item: int) -> int:
    raise KeyError("colour")


def fail_unportably(item: int) -> int:
    raise ThatCannotTravel("this", "that")


def die(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_once(folder: Path, item: int) -> int:
    """Two items kill their worker, but not the one that takes its place."""
    if item in (2, 5) and not (folder / str(item)).exists():
        (folder / str(item)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


class EngineDeadError(Exception):
    """By the name of vLLM's."""


def lose_the_engine_once(folder: Path, item: int) -> tuple[int, int]:
    if item == 1 and not (folder / "dead").exists():
        (folder / "dead").write_text(str(os.getpid()))
        raise RuntimeError("sampling failed") from EngineDeadError()
    return item, os.getpid()


def lose_the_engine(item: int) -> int:
    raise EngineDeadError(f"nothing comes back for {item}")


def begin_and_wait(folder: Path, item: int) -> int:
    """The first call says which process started this one, Ray's of the node, and waits to die with it; a second one does not."""
    if item == 0 and not list(folder.glob("0.killed")):
        (folder / "0.part").write_text(str(os.getppid()))
        (folder / "0.part").rename(folder / "0.begun")
        time.sleep(60)
    return item


def variable(name: str) -> str | None:
    time.sleep(0.2)  # so that no worker does all of it
    return os.environ.get(name)


def leave(item: int) -> int:
    os._exit(7)


def touch_slowly(path: Path) -> None:
    path.with_suffix(".begun").touch()
    time.sleep(0.5)
    path.touch()


def print_and_double(item: int) -> int:
    print(f"item {item}")
    return 2 * item


class Surroundings:
    """Says, when it arrives in a worker, which GPUs it may use and whether torch came before it."""

    def __reduce__(self) -> tuple[Callable[[], Arrived], tuple[()]]:
        return Arrived, ()

    def __call__(self, item: int) -> tuple[str | None, bool]:
        raise AssertionError("stays at home")


class Arrived:
    def __init__(self) -> None:
        self.found = os.environ.get(GPU_VARIABLE), "torch" in sys.modules

    def __call__(self, item: int) -> tuple[str | None, bool]:
        time.sleep(0.3)  # so that no worker does all of it
        return self.found


def last_when_first(folder: Path, others: int, item: int) -> int:
    """The first item ends when the others are done, however long a busy machine takes; it gives up after a minute."""
    until = time.monotonic() + 60
    if item:
        (folder / str(item)).touch()
    while not item and len(list(folder.iterdir())) < others and time.monotonic() < until:
        time.sleep(0.01)
    return os.getpid()


def write_pid_and_wait(path: Path) -> None:
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(60)
