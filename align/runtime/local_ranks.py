"""The ranks of one machine: torch's elastic agent, which torchrun runs, starts their processes and ends them when one dies."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, cast

from align.runtime.rank import Beat, Message, Rank, send_message, serve_rank
from align.runtime.spread import Spread

LOOPBACK = "127.0.0.1"
RENDEZVOUS = "align-meeting"
"""Name under which torch's registry has our rendezvous."""
END_SECONDS = 10
"""How long ranks may take to end, once they were told to, before they are killed."""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface."""


@dataclass(frozen=True)
class Meeting:
    """Where the agents of all machines meet, and their ranks: a store of torch at an address of the first machine.

    torch's own stores listen on every interface; this one listens at its address alone. It takes pickled values from whoever
    connects.
    """

    store: Any
    address: str
    port: int
    own_address: str
    """Of this machine, in the same network."""
    node: int = 0
    """Number of this machine."""
    nodes: int = 1

    @classmethod
    def opened(cls, address: str, *, nodes: int = 1) -> Meeting:
        """One that this machine holds, at a free port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        listener = socket.create_server((address, 0))
        port = listener.getsockname()[1]
        store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        return cls(store, address, port, address, 0, nodes)

    @classmethod
    def joined(cls, address: str, port: int, own_address: str, *, node: int, nodes: int) -> Meeting:
        """One that another machine holds."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        return cls(TCPStore(address, port, wait_for_workers=False), address, port, own_address, node, nodes)


class LocalRanks:
    """The ranks that run on this machine, from the moment before they are started."""

    def __init__(self, spread: Spread, *, first: int = 0, start_method: Literal["fork", "spawn"]) -> None:
        """Make the pipes.

        Args:
            first: number of the first rank here.
            start_method: a fork has what this process imported, but neither CUDA nor Ray survives one.
        """
        self._spread = spread
        self._first = first
        self._start_method = start_method
        pipes = [multiprocessing.get_context(start_method).Pipe() for _ in range(spread.processes_each)]
        self._ours = [ours for ours, _ in pipes]
        self._theirs = [theirs for _, theirs in pipes]
        self._pids: dict[int, int] = {}

    def run(self, work: Callable[[Rank], Any], meeting: Meeting, folder: Path) -> dict[int, int]:
        """Call `work` in every rank. Returns once all of them have ended, with the exit codes of those that ended badly.

        Args:
            work: picklable, and of a module.
            folder: for files of the agent.
        """
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        rendezvous_handler_registry.register(RENDEZVOUS, _meet)
        config = LaunchConfig(
            min_nodes=meeting.nodes,
            max_nodes=meeting.nodes,
            nproc_per_node=self._spread.processes_each,
            run_id="align",
            rdzv_backend=RENDEZVOUS,
            rdzv_endpoint=meeting.address,
            rdzv_configs={"meeting": meeting},
            max_restarts=0,  # the same command goes on from the last checkpoint
            start_method=self._start_method,
            local_addr=meeting.own_address,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
            # A stop is a message to the ranks. torch needs one signal at least, and this one ends everything at once.
            signals_to_handle="SIGQUIT",
            shutdown_timeout=END_SECONDS,
        )
        try:
            with talking_over(meeting.own_address), _nothing_collected():
                elastic_launch(config, serve_rank)(self._theirs, work, self._spread)
        except ChildFailedError as error:
            return {rank: found.exitcode for rank, found in error.failures.items()}
        return {}

    def hear(self, timeout: float) -> list[tuple[int, Message]]:
        """Messages that have come, and the ranks that sent them; waits for the first so many seconds."""
        open_ones = [connection for connection in self._ours if not connection.closed]
        heard: list[tuple[int, Message]] = []
        for ready in cast(list[Connection], wait(open_ones, timeout)):
            rank = self._first + self._ours.index(ready)
            try:
                # All that is there: a rank may have left its last words in the pipe.
                while ready.poll():
                    heard.append((rank, pickle.loads(ready.recv_bytes())))
            except (EOFError, OSError):
                ready.close()
        for rank, message in heard:
            if isinstance(message, Beat):
                self._pids[rank] = message.pid
        return heard

    def tell_to_stop(self, number: int) -> None:
        """Tell every rank the number of a signal."""
        for connection in self._ours:
            if not connection.closed:
                send_message(connection, number)

    def kill(self) -> None:
        """End the ranks; the agent then ends too."""
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def talking_over(address: str) -> Iterator[None]:
    """Around the start of a group: the interface with this address in the environment, unless the user named another."""
    new = {name: interface_of(address) for name in INTERFACE_VARIABLES if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def interface_of(address: str) -> str:
    """Name of the network interface of this machine that has an IPv4 address; the loopback's where none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return "lo"


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep what exists now out of garbage collection: in a fork, the end of a store would touch threads that its parent has."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _meet(parameters: Any) -> Any:
    """torch's view of a meeting: every machine has its number already, and none comes later."""
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

    meeting: Meeting = parameters.config["meeting"]

    class Handler(RendezvousHandler):
        use_agent_store = True

        def get_backend(self) -> str:
            return RENDEZVOUS

        def get_run_id(self) -> str:
            return str(parameters.run_id)

        def next_rendezvous(self) -> RendezvousInfo:
            where = RendezvousStoreInfo(meeting.address, meeting.port)
            return RendezvousInfo(meeting.store, meeting.node, meeting.nodes, where)

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            pass

        def num_nodes_waiting(self) -> int:
            return 0

        def shutdown(self) -> bool:
            return True

    return Handler()
