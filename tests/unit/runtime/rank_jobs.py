"""Work that ranks do in the tests; processes import it from here."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from align.errors import DataError, Interrupted
from align.runtime.events import Note
from align.runtime.group import all_of, any_of, from_first, wait_for_all
from align.runtime.life import still_working
from align.runtime.rank import Rank


def talk(rank: Rank) -> list[object]:
    rank.emit(Note(stage="talk", text=f"from {rank.number}"))
    wait_for_all()
    return [all_of(rank.number), from_first(f"said by {rank.number}"), any_of(rank.number == 1), any_of(False)]


def die(rank: Rank) -> None:
    if rank.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()


def die_when_done(rank: Rank) -> None:
    if rank.number == 1:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        time.sleep(5)


def fail(rank: Rank) -> None:
    if rank.number == 1:
        raise DataError("row 7: no prompt", hint="Remove it.")
    wait_for_all()


def break_down(rank: Rank) -> None:
    if rank.number == 1:
        raise IndexError("nobody thought of this")
    wait_for_all()


def stop_when_told(rank: Rank) -> None:
    while (number := rank.stop_requested()) is None:
        time.sleep(0.05)
    raise Interrupted("Stopped.", signal_number=number)


def freeze(rank: Rank) -> None:
    wait_for_all()
    if rank.number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait_for_all()


def never_step(rank: Rank) -> None:
    time.sleep(600)


def step_while_the_others_wait(rank: Rank) -> None:
    wait_for_all()
    for _ in range(60 if rank.number == 0 else 0):
        time.sleep(0.1)
        still_working()
    wait_for_all()


def addresses(rank: Rank) -> list[str]:
    """Local addresses of the sockets that this process and its parent listen on."""
    wait_for_all()
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table, encoding="ascii") as lines:
            found += [line.split() for line in lines][1:]
    inodes = set()
    for pid in (os.getpid(), os.getppid()):
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
            except OSError:
                continue
    wait_for_all()
    return [row[1].partition(":")[0] for row in found if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]


@dataclass(frozen=True)
class TalkUntilStopped:
    """Says who is there, and works with the others, in steps, until a stop."""

    ready: Path

    def __call__(self, rank: Rank) -> None:
        rank.emit(Note(stage="talk", text=f"from {rank.number}: {all_of(rank.number)}"))
        self.ready.touch()
        while not any_of(rank.stop_requested() is not None):
            time.sleep(0.05)
        raise Interrupted("Stopped.", signal_number=rank.stop_requested() or signal.SIGTERM)
