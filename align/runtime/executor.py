"""Map work over workers, in this process or in several; the results do not depend on which.

A stage defines the work on one item and what happens to its result. `executor_for` alone decides how many workers there are, and
where.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import pickle
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

from align.runtime.control_group import MemoryKills
from align.runtime.gpus import GPU_VARIABLE, share_of_gpus, visible_gpus
from align.runtime.item_flow import POLL_SECONDS, ItemFlow, WorkerDied, answer, never_stop, open_answer
from align.runtime.pool import LOCAL, Pool
from align.runtime.process import end_with_parent, how_it_ended, send_output_to, start
from align.runtime.signals import ignore

EXIT_SECONDS = 10.0

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Does pieces of work that do not depend on each other."""

    def map(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        *,
        on_done: Callable[[T, R], None],
        check_stop: Callable[[], None] = never_stop,
        in_order: bool = False,
    ) -> None:
        """Call `work` once with every item.

        Args:
            work: picklable, and of a module, because workers do not import `__main__`. Each worker has one copy for all its
                items, so an engine or tokenizer that the first item leaves in an attribute serves the next ones.
            items: picklable, drawn in order as workers become free; which worker gets which item is not fixed.
            on_done: called in this thread with an item and its result. Results travel: keep them small, or on disk.
            check_stop: called between items, and a few times a second while workers are busy. It raises Interrupted to stop.
                Then no item is begun, and those under way may end.
            in_order: call `on_done` in the order of the items; the work still runs at the same time.
        Raises:
            Whatever `work` raises for an item, as it is; the items under way are given up.
            Interrupted: from `check_stop` or `on_done`, once the items under way have ended.
            WorkerDied: if a process of a worker ends by itself.
        """


def executor_for(
    num_workers: int,
    num_items: int | None = None,
    *,
    gpus_each: int = 0,
    items_ahead: int = 0,
    pool: Pool = LOCAL,
    shared: Path | None = None,
) -> Executor:
    """How items are worked on: the one place that decides.

    Args:
        num_workers: most workers that may work at the same time; fewer where each needs a GPU and there are fewer.
        num_items: None if it is not known.
        gpus_each, items_ahead: see `Processes`; `RayPool` sends no items ahead.
        pool: where the workers are, also if there is only one.
        shared: a folder that the items are about; workers on other machines must see it.
    """
    workers = num_workers if num_items is None else min(num_workers, num_items)
    if pool.kind == "ray" and workers:
        from align.runtime.ray_pool import RayPool

        return RayPool(workers, gpus_each=gpus_each, address=pool.address, shared=shared)
    if gpus_each and (gpus := visible_gpus()):
        # An engine takes most of a GPU's memory, so a second worker on it would die at its start.
        workers = min(workers, max(1, len(gpus) // gpus_each))
    return Processes(workers, gpus_each=gpus_each, items_ahead=items_ahead) if workers > 1 else Inline()


class Inline:
    """Works in the caller's own process, item by item."""

    def map(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        *,
        on_done: Callable[[T, R], None],
        check_stop: Callable[[], None] = never_stop,
        in_order: bool = False,  # it always is
    ) -> None:
        """See `Executor.map`."""
        for item in items:
            check_stop()
            on_done(item, work(item))


@dataclass(frozen=True)
class Processes:
    """Works in processes of this machine, which start with every `map` and end after it."""

    num_workers: int
    gpus_each: int = 0
    """GPUs that a process sees, where the machine has more; 0: all of them."""
    items_ahead: int = 0
    """Items that wait in a worker while it works on another. More than 0 suits many short items, not few long ones."""
    log: Path | None = None
    """File that takes what the processes print; default: where this process prints."""

    def map(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        *,
        on_done: Callable[[T, R], None],
        check_stop: Callable[[], None] = never_stop,
        in_order: bool = False,
    ) -> None:
        """See `Executor.map`."""
        flow = ItemFlow(items, on_done, check_stop, in_order=in_order)
        # No more processes than items, of which the number may be unknown.
        first = flow.first(self.num_workers)
        crew = _Crew(self, pickle.dumps(work), flow)
        try:
            crew.start(first)
            crew.run()
            crew.end()
        finally:
            crew.kill()


class _Worker(Generic[T]):
    """A process, the connection to it, and the items that it has, oldest first."""

    def __init__(self, number: int, environment: Mapping[str, str], log: Path | None) -> None:
        # Spawned: a fork would copy threads (of progress displays, of torch) and CUDA, and neither survives that.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, environment, log), name=f"align-worker-{number}")
        self.kills = MemoryKills()
        start(self.process)
        # Only the child holds that end now, so reading from ours ends with EOFError when the child dies.
        theirs.close()
        self.items: deque[tuple[int, T]] = deque()

    def begin(self, number: int, item: T) -> None:
        self.items.append((number, item))
        self.send(pickle.dumps(item))

    def send(self, content: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; `run` notices that when it waits for the answer
            self.connection.send_bytes(content)


class _Crew(Generic[T, R]):
    """The workers of one `map`."""

    def __init__(self, how: Processes, work: bytes, flow: ItemFlow[T, R]) -> None:
        self._how = how
        self._work = work
        self._flow = flow
        self._workers: list[_Worker[T]] = []

    def start(self, first: Sequence[tuple[int, T]]) -> None:
        """Start a process for each of the first items, all before the first is sent: that waits until its process reads."""
        devices = visible_gpus()
        for number in range(len(first)):
            gpus = share_of_gpus(devices, number, self._how.gpus_each)
            environment = {} if gpus is None else {GPU_VARIABLE: ",".join(gpus)}
            self._workers.append(_Worker(number, environment, self._how.log))
        for worker in self._workers:
            worker.send(self._work)
        for worker, drawn in zip(self._workers, first, strict=True):
            worker.begin(*drawn)

    def run(self) -> None:
        while True:
            if self._flow.stop is None:
                self._hand_out()
            busy = {worker.connection: worker for worker in self._workers if worker.items}
            if not busy or self._flow.given_up:
                break
            for ready in cast(list[Connection], wait(list(busy), POLL_SECONDS)):
                self._take(busy[ready])
            for worker in busy.values():
                # A process that is gone may have left its answer in the pipe.
                if not worker.process.is_alive() and not worker.connection.poll():
                    self._raise_death(worker)
            self._flow.check_stop()
        if self._flow.stop is not None:
            raise self._flow.stop

    def _hand_out(self) -> None:
        """Draw items for workers that have room, those without any first."""
        room = (self._how.items_ahead + 2) * len(self._workers)
        for depth in range(self._how.items_ahead + 1):
            for worker in self._workers:
                if len(worker.items) > depth:
                    continue
                if (drawn := self._flow.draw(room)) is None:
                    return
                worker.begin(*drawn)

    def _take(self, worker: _Worker[T]) -> None:
        """Receive one result, and deliver all that are due."""
        try:
            content = worker.connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            self._raise_death(worker)
        result = open_answer(content)
        self._flow.deliver(*worker.items.popleft(), result)

    def _raise_death(self, worker: _Worker[T]) -> NoReturn:
        self._flow.raise_stop()  # a signal to the whole process group may have ended it; then this is a stop, not an error
        worker.process.join(EXIT_SECONDS)
        code = worker.process.exitcode or 0
        raise WorkerDied(
            f"a worker's process {how_it_ended(code)} before its work was done",
            hint=f"{worker.kills.hint(code)}The log says more; run the same command again to go on from here.",
        )

    def end(self) -> None:
        """Let the processes end by themselves."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(EXIT_SECONDS)

    def kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()


def _serve(connection: Connection, environment: Mapping[str, str], log: Path | None) -> None:
    """A worker's process: receive the work, then answer items until the connection is closed."""
    end_with_parent()
    ignore((signal.SIGHUP, signal.SIGUSR1))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_to_the_parent)
    # Before anything else is imported: CUDA reads the variable once, at its first use.
    os.environ.update(environment)
    if log is not None:
        send_output_to(log)
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    # A thread reads, so that the parent never waits in `send` while this process waits in its own.
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    content, work = inbox.get(), None
    while (item := inbox.get()) is not None:

        def do(item: bytes = item) -> Any:
            nonlocal work
            # Unpickled here, not before the loop, so that an import that fails is reported like an error of the work.
            work = work or pickle.loads(content or b"")
            return work(pickle.loads(item))

        reply = answer(do)
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send_bytes(reply)
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    os._exit(0)  # vLLM and torch may hang in their own exit handlers


def _receive(connection: Connection, inbox: queue.SimpleQueue[bytes | None]) -> None:
    with suppress(EOFError, OSError):
        while True:
            inbox.put(connection.recv_bytes())
    inbox.put(None)
    inbox.put(None)  # a second one, for the case that the connection closes before the work arrives


def _leave_to_the_parent(number: int, frame: Any) -> None:
    """Ignore a signal: a terminal sends it to every process of the group, and the parent decides what to do."""
