"""The process of one rank: its place in torch's process group, and what it tells the caller."""

from __future__ import annotations

import multiprocessing.synchronize
import multiprocessing.util
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from align.errors import AlignError
from align.runtime.events import Emit, Event
from align.runtime.life import watched_by
from align.runtime.process import end_with_parent
from align.runtime.signals import FROM_TERMINAL, ignore
from align.runtime.spread import Spread

BEAT_SECONDS = 1.0
SUSPENDED_SECONDS = 10.0
"""A thread that is to run every second, and did not for so long, was suspended with its process. That is no hang."""
CONSEQUENCE_SECONDS = 5.0
"""How long a rank with an error that may follow from another's death lives on, so that the death itself is found first."""

DONE_POLL_SECONDS = 0.05
NO_TIMEOUT = timedelta(days=10)
"""Of collectives: in effect none, and few enough milliseconds for an int of C."""


@dataclass(frozen=True)
class Rank:
    """What the work knows of the process that it runs in."""

    number: int
    """From 0."""
    size: int
    """How many there are."""
    emit: Emit
    """Takes events; those of rank 0 reach the caller."""
    stop_requested: Callable[[], int | None]
    """The number of the signal that asked to stop, or None. Ranks learn of it at slightly different moments."""


@dataclass(frozen=True)
class Beat:
    """Sent every second."""

    pid: int
    idle_seconds: float
    """Since the rank last reported progress. Clocks of two machines differ, so that no moment is sent."""


@dataclass(frozen=True)
class Ended:
    """The last message of a rank."""

    at: float
    """By `time.time`, which machines agree on, more or less."""
    result: bytes = b""
    """Of rank 0, pickled: whoever hands it on must not wait for the imports that opening it may need."""
    peak_bytes: int = 0
    error: AlignError | None = None
    trace: str = ""
    """Traceback of the error; without an error, that of a bug."""


Message = Event | Beat | Ended
"""What a rank sends."""


@dataclass
class _State:
    """What the threads of a rank share."""

    step_at: float = field(default_factory=time.monotonic)
    asked_at: float = field(default_factory=time.monotonic)
    stop: int | None = None

    def gets_on(self) -> None:
        self.step_at = time.monotonic()

    def idle_seconds(self) -> float:
        """Since the rank last got on, without the time in which the process was suspended; to be asked every second."""
        now = time.monotonic()
        if (gap := now - self.asked_at) > SUSPENDED_SECONDS:
            self.step_at = min(now, self.step_at + gap)
        self.asked_at = now
        return now - self.step_at


def serve_rank(connections: list[Connection], work: Callable[[Rank], Any], spread: Spread) -> None:
    """A rank's process."""
    end_with_parent()
    # The caller's process may remember SIGTERM instead of obeying it, and a fork has its handlers.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ignore(FROM_TERMINAL)
    number, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    connection = connections[local]
    for other, theirs in enumerate(connections):
        if other != local:
            theirs.close()
    lock, state = threading.Lock(), _State()

    def send(message: Message) -> None:
        with lock:
            send_message(connection, message)

    def beat() -> None:
        while True:
            send(Beat(os.getpid(), state.idle_seconds()))
            if connection.poll(BEAT_SECONDS):
                try:
                    state.stop = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    return

    def emit(event: Event) -> None:
        state.gets_on()
        if number == 0:
            send(event)

    threading.Thread(target=beat, name="beat", daemon=True).start()
    try:
        with _process_group(local, spread), watched_by(state.gets_on):
            result = work(Rank(number, spread.processes, emit, lambda: state.stop))
            ended = Ended(time.time(), pickle.dumps(result) if number == 0 else b"", _peak_bytes())
    except BaseException as error:  # the caller decides what the user sees
        at, trace = time.time(), traceback.format_exc()
        traceback.print_exc()
        known = error if isinstance(error, AlignError) else None
        send(Ended(at, error=known, trace=trace))
        _flush()
        if known is None:
            time.sleep(CONSEQUENCE_SECONDS)
        os._exit(1)
    multiprocessing.synchronize.Event.wait = _wait_until_set  # type: ignore[assignment, method-assign]
    send(ended)
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    _flush()


def _wait_until_set(event: Any) -> bool:
    """In place of `Event.wait`, in which torch lets a rank wait for the others at the end.

    A process that is killed in the original stays registered, and in the caller's process `Event.set` would wait for it for ever.
    """
    while event._flag._semlock._is_zero():
        time.sleep(DONE_POLL_SECONDS)
    return True


@contextmanager
def _process_group(local: int, spread: Spread) -> Iterator[None]:
    """torch's process group of the ranks. It is left as it is after an error: the others may never answer."""
    import torch
    import torch.distributed as dist

    from align.runtime.device import device_name

    if device_name() == "cuda":
        torch.cuda.set_device(local)
        backend = "cuda:nccl,cpu:gloo"
    else:
        # Each rank would start a thread for every core.
        threads = max(1, torch.get_num_threads() // spread.processes_each)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else accelerate chooses, and warns
        backend = "gloo"
    # The watch alone ends a group that hangs. Ranks may wait for long while rank 0 samples, and gets on.
    dist.init_process_group(backend, timeout=NO_TIMEOUT)
    yield
    dist.destroy_process_group()


def _peak_bytes() -> int:
    import resource

    from align.runtime.device import peak_gpu_bytes

    return peak_gpu_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def send_message(connection: Connection, message: Any) -> None:
    """Send a message to a rank or to the caller. If the other side is gone, the agent deals with that, or `end_with_parent`."""
    with suppress(BrokenPipeError, ConnectionResetError):
        # Pickled here: a connection would send a tensor as a handle of memory that ends with its process.
        connection.send_bytes(pickle.dumps(message))


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
