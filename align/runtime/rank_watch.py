"""What the ranks of a training say, wherever they run: how far they are, which of them hangs, and which error came first."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from align.errors import Interrupted, StageError
from align.runtime.control_group import MemoryKills
from align.runtime.events import Emit
from align.runtime.process import RemoteTraceback, how_it_ended
from align.runtime.rank import SUSPENDED_SECONDS, Beat, Ended, Message
from align.runtime.spread import Spread

FROZEN_SECONDS = 40.0
"""A rank whose process says nothing for so long is stopped or frozen: its thread speaks every second, also while it computes."""
AGAIN = "Run the same command again to go on from the last checkpoint."

T = TypeVar("T")


@dataclass
class RankBug(RuntimeError):
    """An error in align itself, or in a library, in a rank; carries that rank's traceback."""

    rank: str
    trace: str

    def __str__(self) -> str:
        return f"{self.rank} failed:\n{self.trace}"


@dataclass(frozen=True)
class RanksResult(Generic[T]):
    """What the ranks leave."""

    value: T
    """What the work returned in rank 0."""
    peak_bytes: int
    """The most memory that one of them used, of its GPU or of the computer."""


class Watch:
    """Takes the messages of all ranks. It neither hears nor ends them: that is done where they run."""

    def __init__(self, spread: Spread, emit: Emit, stop_requested: Callable[[], int | None], nodes: Sequence[str] = ()) -> None:
        """Begin.

        Args:
            nodes: names of the machines that the ranks are on, in the order of ranks.
        """
        self._spread = spread
        self._emit = emit
        self._stop_requested = stop_requested
        self._nodes = nodes
        self._kills = MemoryKills()
        self._pids: dict[int, int] = {}
        self._heard: dict[int, float] = {}
        self._steps: dict[int, float] = {}
        self._ended: dict[int, Ended] = {}
        self._stop: int | None = None
        self._hang = ""
        self._awake_at = time.monotonic()

    def take(self, rank: int, message: Message) -> None:
        """Take a message that has just come."""
        now = time.monotonic()
        self._heard[rank] = now
        if isinstance(message, Beat):
            self._pids[rank], self._steps[rank] = message.pid, now - message.idle_seconds
        elif isinstance(message, Ended):
            self._ended[rank], self._steps[rank] = message, now
        else:
            self._emit(message)

    def awake(self) -> None:
        """Say, a few times a second, that this process runs.

        Time in which it could not, because the machine or the whole run was suspended (Ctrl-Z, a laptop), does not count for the
        ranks either.
        """
        now = time.monotonic()
        if (gap := now - self._awake_at) > SUSPENDED_SECONDS:
            for times in (self._heard, self._steps):
                times.update({rank: min(now, at + gap) for rank, at in times.items()})
        self._awake_at = now

    def stop_number(self) -> int | None:
        """The number of the signal that asked to stop, for all ranks; None if there was none."""
        if self._stop is None:
            self._stop = self._stop_requested()
        return self._stop

    def finds_hang(self) -> bool:
        """Whether a rank is frozen, or none has finished a step for too long. All must be ended then."""
        self._hang = self._hang or self._look()
        return bool(self._hang)

    def _look(self) -> str:
        now = time.monotonic()
        running = [rank for rank in self._pids if rank not in self._ended]
        for rank in running:
            if (silent := now - self._heard[rank]) > FROZEN_SECONDS:
                last = f"its last step was {now - self._steps[rank]:.0f} s ago"
                return f"{self._name(rank)} (process {self._pids[rank]}) has not answered for {silent:.0f} s; {last}"
        # The rank that is behind waits for nobody; the others wait for it. One that has just ended may have been that rank.
        if running and (idle := now - max(self._steps.values())) > 60 * self._spread.hang_minutes:
            steps = ", ".join(f"{self._name(rank)} {now - self._steps[rank]:.0f} s ago" for rank in sorted(running))
            return f"no rank has finished a step for {idle:.0f} s (last: {steps})"
        return ""

    def _name(self, rank: int) -> str:
        return f"rank {rank}{self._place(rank)}"

    def _place(self, rank: int) -> str:
        return f" on {self._nodes[rank // self._spread.processes_each]}" if self._nodes else ""

    def result(self, codes: Mapping[int, int], lost: Sequence[str] = ()) -> RanksResult[Any]:
        """The result, or the error that came first.

        Args:
            codes: exit codes of ranks that ended by themselves, and badly.
            lost: of each machine that is gone, a clause with its name and what is known.
        """
        if self._hang:
            raise StageError(
                f"{self._hang}; all ranks were ended",
                hint=f"{AGAIN} If steps really take so long, raise training.hang_minutes in the machine file.",
            )
        failed = {rank: ended for rank, ended in self._ended.items() if ended.error is not None or ended.trace}
        if self._stop is not None and (stopped := [e.error for e in failed.values() if isinstance(e.error, Interrupted)]):
            raise stopped[0]
        # What the other ranks say follows from the end of a machine, or of a rank that was killed and says nothing.
        if lost:
            raise StageError(f"{lost[0]}; all ranks were ended", hint=AGAIN)
        # So does one that was killed when it was done, while rank 0 was not, or when rank 0 had only begun to connect to it.
        first = self._ended.get(0)
        first_is_done = first is not None and (first.error is not None or not first.trace)
        for rank, code in codes.items():
            is_silent = rank not in self._ended or (not first_is_done and rank not in failed)
            if is_silent and code != -signal.SIGTERM:
                name = f"rank {rank} of {self._spread.processes}{self._place(rank)}"
                hint = self._kills.hint(code, is_here=not self._nodes)
                raise StageError(f"{name} {how_it_ended(code)} before it was done", hint=f"{hint}{AGAIN}")
        for rank, ended in sorted(failed.items(), key=lambda item: item[1].at):
            if ended.error is not None:
                raise ended.error from RemoteTraceback(ended.trace)
            raise RankBug(self._name(rank), ended.trace)
        if 0 not in self._ended:
            raise StageError("rank 0 ended without a result", hint="The log says more.")
        return RanksResult(pickle.loads(self._ended[0].result), max(ended.peak_bytes for ended in self._ended.values()))
