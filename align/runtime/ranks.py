"""One piece of work in several processes that compute together: the ranks of a training.

torch's elastic agent, which torchrun runs, starts the processes, gives each its rank and ends all of them when one dies. What it
does not do is here: events and the result of rank 0 reach the caller, a request to stop reaches every rank, a rank that hangs is
found, and the error that is raised is that of the rank that failed first.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from align.errors import Interrupted, StageError
from align.runtime.events import Emit, Event
from align.runtime.gpus import visible_gpus
from align.runtime.process import RemoteTraceback, how_it_ended, memory_hint
from align.runtime.rank import Beat, Ended, Rank, send_message, serve_rank
from align.runtime.spread import Spread

LOOPBACK = "127.0.0.1"
RENDEZVOUS = "align-loopback"
"""Name under which torch's registry has our rendezvous."""
POLL_SECONDS = 0.2
FROZEN_SECONDS = 40.0
"""A rank whose process says nothing for so long is stopped or frozen: its thread speaks every second, also while it computes."""
END_SECONDS = 10
"""How long ranks may take to end, once they were told to, before they are killed."""

T = TypeVar("T")


@dataclass
class RankBug(RuntimeError):
    """An error in align itself, or in a library, in a rank; carries that rank's traceback."""

    rank: int
    trace: str

    def __str__(self) -> str:
        return f"rank {self.rank} failed:\n{self.trace}"


@dataclass(frozen=True)
class RanksResult(Generic[T]):
    """What the ranks leave."""

    value: T
    """What the work returned in rank 0."""
    peak_bytes: int
    """The most memory that one of them used, of its GPU or of the computer."""


def run_ranks(
    work: Callable[[Rank], T],
    spread: Spread,
    *,
    folder: Path,
    emit: Emit,
    stop_requested: Callable[[], int | None],
) -> RanksResult[T]:
    """Call `work` in every rank, in processes of this machine that form a process group of torch.

    Args:
        work: picklable, and of a module. It ends in all ranks, or raises.
        folder: for files of the agent; removed by the caller.
        emit: called in another thread than this one.
    Raises:
        AlignError: what a rank raised; that of the first, if several did.
        Interrupted: if ranks stopped after a request.
        StageError: if a rank died or hung.
        RankBug: if a rank raised anything else.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A fork has the trainers imported already, but CUDA does not survive one.
    context = multiprocessing.get_context("spawn" if visible_gpus() else "fork")
    pipes = [context.Pipe() for _ in range(spread.processes)]
    watch = _Watch([ours for ours, _ in pipes], spread, emit, stop_requested)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=spread.processes,
        run_id="align",
        rdzv_backend=_register_rendezvous(),
        rdzv_endpoint=LOOPBACK,
        max_restarts=0,  # the same command goes on from the last checkpoint
        start_method=context.get_start_method(),
        local_addr=LOOPBACK,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        # A stop is a message to the ranks. torch needs one signal at least, and this one ends everything at once.
        signals_to_handle="SIGQUIT",
        shutdown_timeout=END_SECONDS,
    )
    failure: ChildFailedError | None = None
    watch.start()
    try:
        with _environment(), _nothing_collected():
            elastic_launch(config, serve_rank)([theirs for _, theirs in pipes], work, spread)
    except ChildFailedError as error:
        failure = error
    finally:
        watch.end()
    codes = {} if failure is None else {rank: found.exitcode for rank, found in failure.failures.items()}
    return watch.result(codes)


class _Watch:
    """Listens to the ranks in a thread, while the agent runs in the caller's."""

    def __init__(
        self, connections: list[Connection], spread: Spread, emit: Emit, stop_requested: Callable[[], int | None]
    ) -> None:
        self._connections = connections
        self._spread = spread
        self._emit = emit
        self._stop_requested = stop_requested
        self._pids: dict[int, int] = {}
        self._heard: dict[int, float] = {}
        self._steps: dict[int, float] = {}
        self._ended: dict[int, Ended] = {}
        self._told_to_stop = False
        self._hang: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Read what is left in the pipes."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._hear(POLL_SECONDS)
            if not self._told_to_stop and (number := self._stop_requested()) is not None:
                self._told_to_stop = True
                for connection in self._connections:
                    send_message(connection, number)
            if self._hang is None and (problem := self._find_hang()) is not None:
                self._hang = problem
                for pid in self._pids.values():
                    os.kill(pid, signal.SIGKILL)
        self._hear(0)

    def _hear(self, timeout: float) -> None:
        open_ones = [connection for connection in self._connections if not connection.closed]
        for ready in cast(list[Connection], wait(open_ones, timeout)):
            rank = self._connections.index(ready)
            try:
                # All that is there: a rank may have left its last words in the pipe.
                while ready.poll():
                    self._take(rank, pickle.loads(ready.recv_bytes()))
            except (EOFError, OSError):
                ready.close()

    def _take(self, rank: int, message: Event | Beat | Ended) -> None:
        self._heard[rank] = time.monotonic()
        if isinstance(message, Beat):
            self._pids[rank], self._steps[rank] = message.pid, message.step_at
        elif isinstance(message, Ended):
            self._ended[rank] = message
        else:
            self._emit(message)

    def _find_hang(self) -> str | None:
        now = time.monotonic()
        running = [rank for rank in self._pids if rank not in self._ended]
        for rank in running:
            if (silent := now - self._heard[rank]) > FROZEN_SECONDS:
                last = f"its last step was {now - self._steps[rank]:.0f} s ago"
                return f"rank {rank} (process {self._pids[rank]}) has not answered for {silent:.0f} s; {last}"
        # The rank that is behind waits for nobody; the others wait for it.
        if running and (idle := now - max(self._steps[rank] for rank in running)) > 60 * self._spread.hang_minutes:
            steps = ", ".join(f"rank {rank} {now - self._steps[rank]:.0f} s ago" for rank in sorted(running))
            return f"no rank has finished a step for {idle:.0f} s (last: {steps})"
        return None

    def result(self, codes: Mapping[int, int]) -> RanksResult[Any]:
        """The result, or the error that came first.

        Args:
            codes: exit codes of ranks that the agent found dead.
        """
        if self._hang is not None:
            raise StageError(
                f"{self._hang}; all ranks were ended",
                hint="Run the same command again to go on from the last checkpoint. If steps really take so long, raise "
                "training.hang_minutes in the machine file.",
            )
        failed = {rank: ended for rank, ended in self._ended.items() if ended.error is not None or ended.trace}
        if self._told_to_stop and (stopped := [e.error for e in failed.values() if isinstance(e.error, Interrupted)]):
            raise stopped[0]
        # A rank that says nothing was killed. What the others then say follows from that.
        # So does one that was killed when it was done, while rank 0 was not.
        for rank, code in codes.items():
            is_silent = rank not in self._ended or (0 not in self._ended and rank not in failed)
            if is_silent and code != -signal.SIGTERM:
                raise StageError(
                    f"rank {rank} of {self._spread.processes} {how_it_ended(code)} before it was done",
                    hint=f"{memory_hint(code)}Run the same command again to go on from the last checkpoint.",
                )
        for rank, ended in sorted(failed.items(), key=lambda item: item[1].at):
            if ended.error is not None:
                raise ended.error from RemoteTraceback(ended.trace)
            raise RankBug(rank, ended.trace)
        if 0 not in self._ended:
            raise StageError("rank 0 ended without a result", hint="The log says more.")
        return RanksResult(self._ended[0].result, max(ended.peak_bytes for ended in self._ended.values()))


@contextmanager
def _environment() -> Iterator[None]:
    """What ranks find in their environment: the interfaces of this machine alone, unless the user named others."""
    wanted = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep what exists now out of garbage collection: in a fork, the end of a store would touch threads that its parent has."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _register_rendezvous() -> str:
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(RENDEZVOUS, _meet_on_loopback)
    return RENDEZVOUS


def _meet_on_loopback(parameters: Any) -> Any:
    """Where the agent of a single machine and its ranks meet; the stores of torch's own listen on every interface."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

    class Loopback(RendezvousHandler):
        use_agent_store = True

        def __init__(self) -> None:
            listener = socket.create_server((LOOPBACK, 0))
            self._port = listener.getsockname()[1]
            self._store = TCPStore(LOOPBACK, self._port, is_master=True, master_listen_fd=listener.detach())

        def get_backend(self) -> str:
            return RENDEZVOUS

        def get_run_id(self) -> str:
            return str(parameters.run_id)

        def next_rendezvous(self) -> RendezvousInfo:
            return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(LOOPBACK, self._port))

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            pass

        def num_nodes_waiting(self) -> int:
            return 0

        def shutdown(self) -> bool:
            return True

    return Loopback()
