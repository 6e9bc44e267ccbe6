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
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

from align.errors import Interrupted, StageError
from align.runtime.gpus import GPU_VARIABLE, share_of_gpus, visible_gpus
from align.runtime.process import RemoteTraceback, end_with_parent, how_it_ended, memory_hint, send_output_to, start

POLL_SECONDS = 0.2
STOP_SECONDS = 45.0
"""How long items under way may take to end after a stop; less than the runner waits before it kills the stage."""
EXIT_SECONDS = 10.0

T = TypeVar("T")
R = TypeVar("R")


def _never_stop() -> None:
    pass


class Executor(Protocol):
    """Does pieces of work that do not depend on each other."""

    def map(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        *,
        on_done: Callable[[T, R], None],
        check_stop: Callable[[], None] = _never_stop,
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


class WorkerDied(StageError):
    """The process of a worker ended before its work was done."""


def executor_for(num_workers: int, num_items: int | None = None, *, gpus_each: int = 0, items_ahead: int = 0) -> Executor:
    """How this machine works on items: the one place that decides.

    Args:
        num_workers: most workers that may work at the same time; fewer where each needs a GPU and there are fewer.
        num_items: None if it is not known.
        gpus_each, items_ahead: see `Processes`.
    """
    workers = num_workers if num_items is None else min(num_workers, num_items)
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
        check_stop: Callable[[], None] = _never_stop,
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
        check_stop: Callable[[], None] = _never_stop,
        in_order: bool = False,
    ) -> None:
        """See `Executor.map`."""
        numbered = enumerate(items)
        # No more processes than items, of which the number may be unknown.
        first = list(islice(numbered, self.num_workers))
        crew = _Crew(self, pickle.dumps(work), chain(first, numbered), on_done, check_stop, in_order)
        try:
            crew.start(len(first))
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
        start(self.process)
        # Only the child holds that end now, so reading from ours ends with EOFError when the child dies.
        theirs.close()
        self.items: deque[tuple[int, T]] = deque()

    def send(self, content: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; `run` notices that when it waits for the answer
            self.connection.send_bytes(content)


class _Crew(Generic[T, R]):
    """The workers of one `map`."""

    def __init__(
        self,
        how: Processes,
        work: bytes,
        items: Iterator[tuple[int, T]],
        on_done: Callable[[T, R], None],
        check_stop: Callable[[], None],
        in_order: bool,
    ) -> None:
        self._how = how
        self._work = work
        self._items = items
        self._on_done = on_done
        self._check_stop = check_stop
        self._in_order = in_order
        self._workers: list[_Worker[T]] = []
        self._waiting: dict[int, tuple[T, R]] = {}
        self._num_drawn = self._num_delivered = 0
        self._stop: Interrupted | None = None
        self._give_up_at = 0.0

    def start(self, count: int) -> None:
        """Start all processes before the first item is sent: sending a large one waits until its process reads."""
        devices = visible_gpus()
        for number in range(count):
            gpus = share_of_gpus(devices, number, self._how.gpus_each)
            environment = {} if gpus is None else {GPU_VARIABLE: ",".join(gpus)}
            self._workers.append(_Worker(number, environment, self._how.log))
        for worker in self._workers:
            worker.send(self._work)

    def run(self) -> None:
        while True:
            if self._stop is None:
                self._hand_out()
            busy = {worker.connection: worker for worker in self._workers if worker.items}
            if not busy or (self._stop is not None and time.monotonic() > self._give_up_at):
                break
            for ready in cast(list[Connection], wait(list(busy), POLL_SECONDS)):
                self._take(busy[ready])
            for worker in busy.values():
                # A process that is gone may have left its answer in the pipe.
                if not worker.process.is_alive() and not worker.connection.poll():
                    self._raise_death(worker)
            self._unless_stopped(self._check_stop)
        if self._stop is not None:
            raise self._stop

    def _hand_out(self) -> None:
        """Draw items for workers that have room, those without any first."""
        # The number of results that wait for an earlier one is bounded, because results may be large.
        most = (self._how.items_ahead + 2) * len(self._workers) if self._in_order else sys.maxsize
        for depth in range(self._how.items_ahead + 1):
            for worker in self._workers:
                if len(worker.items) > depth or self._num_drawn - self._num_delivered >= most:
                    continue
                if (drawn := next(self._items, None)) is None:
                    return
                self._num_drawn += 1
                worker.items.append(drawn)
                worker.send(pickle.dumps(drawn[1]))

    def _take(self, worker: _Worker[T]) -> None:
        """Receive one result, and deliver all that are due."""
        try:
            content = worker.connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            self._raise_death(worker)
        result, error, trace = pickle.loads(content)
        if error is not None:
            raise error from RemoteTraceback(trace)
        number, item = worker.items.popleft()
        # A result waits for those with lower numbers; without an order it takes the next place.
        self._waiting[number if self._in_order else self._num_delivered] = (item, result)
        while (delivered := self._waiting.pop(self._num_delivered, None)) is not None:
            self._num_delivered += 1
            self._unless_stopped(self._on_done, *delivered)

    def _unless_stopped(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Interrupted as stop:
            if self._stop is None:
                self._stop, self._give_up_at = stop, time.monotonic() + STOP_SECONDS

    def _raise_death(self, worker: _Worker[T]) -> NoReturn:
        self._check_stop()  # a signal to the whole process group may have ended it; then this is a stop, not an error
        worker.process.join(EXIT_SECONDS)
        code = worker.process.exitcode or 0
        raise WorkerDied(
            f"a worker's process {how_it_ended(code)} before its work was done",
            hint=f"{memory_hint(code)}The log says more; run the same command again to go on from here.",
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
        try:
            # Unpickled here, not before the loop, so that an import that fails is reported like an error of the work.
            work = work or pickle.loads(content or b"")
            answer = pickle.dumps((work(pickle.loads(item)), None, ""))
        except Exception as error:
            traceback.print_exc()
            answer = pickle.dumps((None, _portable(error), traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send_bytes(answer)
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


def _portable(error: Exception) -> Exception:
    """The error itself if it can be pickled and restored; else a StageError with its text."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # whatever its pickling raises
        pass
    return StageError(f"{type(error).__name__}: {error}", hint="The log has the traceback.")
