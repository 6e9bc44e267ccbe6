"""The ranks of a training on several nodes of a Ray cluster: on each node an actor, in which torch's agent starts the ranks.

Ray reserves the nodes, starts the actors and carries what is said between them and this process; it restarts nothing. The ranks
themselves meet at an address of the first node, and are those of one machine.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from align.errors import EnvironmentProblem, Interrupted, StageError
from align.runtime.events import Emit, Event, Note
from align.runtime.item_flow import answer, open_answer
from align.runtime.local_ranks import END_SECONDS, LocalRanks, Meeting
from align.runtime.process import send_output_to
from align.runtime.rank import Message, Rank
from align.runtime.rank_watch import AGAIN, RankBug, RanksResult, Watch
from align.runtime.ray_cluster import connected
from align.runtime.ray_pool import Surroundings, beacon_in, cannot_start, reason_of_death
from align.runtime.spread import Spread
from align.runtime.threads import SPINNING, THREADS, thread_environment

HEAR_SECONDS = 0.5
"""How long an actor waits for messages before it answers."""
POLL_SECONDS = 0.2
SILENT_SECONDS = 30.0
"""A node whose actor does not answer for so long is given up."""
ORPHAN_SECONDS = 20.0
"""An actor that is not asked for so long ends its ranks. Less than SILENT_SECONDS: when the caller gives up a node that it cannot
reach, and a new attempt may begin, nothing of the old one writes any more."""
FIRST_SECONDS = 300.0
"""The same before it is first asked: the caller waits until all nodes have imported torch and started their ranks."""
WAIT_NOTE_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class _Report:
    """What an actor answers."""

    messages: list[tuple[int, Message]]
    codes: Mapping[int, int] | None = None
    """Once all its ranks have ended: exit codes of those that ended badly by themselves."""
    trace: str = ""
    """Of torch's agent, if it failed itself."""


class NodeRanks:
    """The actor: the ranks of one node."""

    def begin(self, surroundings: Surroundings, threads: Mapping[str, str]) -> bytes:
        """Prepare; answers with the name of the machine and its address in the cluster.

        Args:
            threads: variables of the caller that say how many threads compute, and how they wait.
        """

        def enter() -> tuple[str, str]:
            import ray

            # Ray sets it to the CPUs that it reserved. The ranks have the node to themselves.
            os.environ.pop(THREADS, None)
            os.environ.update(threads)
            os.environ.update(thread_environment(os.environ))
            surroundings.enter()
            # Processes that are spawned would run it again.
            sys.modules["__main__"] = ModuleType("__main__")
            self._address: str = ray.util.get_node_ip_address()
            return os.uname().nodename, self._address

        return answer(enter)

    def open(self, nodes: int) -> bytes:
        """Hold the meeting; answers with its port."""

        def hold() -> int:
            self._meeting = Meeting.opened(self._address, nodes=nodes)
            return self._meeting.port

        return answer(hold)

    def start(self, work: bytes, spread: Spread, node: int, address: str, port: int, folder: Path) -> bytes:
        """Start the ranks of node number `node`."""

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            send_output_to(folder.with_suffix(".log"))
            if node:
                self._meeting = Meeting.joined(address, port, self._address, node=node, nodes=spread.nodes)
            self._ranks = LocalRanks(spread, first=node * spread.processes_each, start_method="spawn")
            self._codes: Mapping[int, int] | None = None
            self._trace = ""
            self._told, self._killed_at = False, 0.0
            self._alone_at = time.monotonic() + FIRST_SECONDS
            self._agent = threading.Thread(target=self._run, args=(_Unpickled(work), folder), name="agent", daemon=True)
            self._agent.start()
            threading.Thread(target=self._end_alone, name="end-alone", daemon=True).start()

        return answer(begin)

    def _run(self, work: Callable[[Rank], Any], folder: Path) -> None:
        try:
            self._codes = self._ranks.run(work, self._meeting, folder)
        except BaseException:
            self._trace = traceback.format_exc()

    def _end_alone(self) -> None:
        while time.monotonic() < self._alone_at:
            time.sleep(1)
        print("Nobody asks any more: the ranks of this node are ended.", file=sys.stderr, flush=True)
        os._exit(1)  # the ranks end with this process

    def hear(self, stop: int | None, end: bool) -> bytes:
        """What the ranks have said since the last call.

        Args:
            stop: a signal to tell them of.
            end: end them.
        """

        def report() -> _Report:
            self._alone_at = time.monotonic() + ORPHAN_SECONDS
            if stop is not None and not self._told:
                self._told = True
                self._ranks.tell_to_stop(stop)
            # An agent whose ranks have all ended well waits for the others', for minutes if those failed.
            given_up = self._killed_at > 0 and time.monotonic() - self._killed_at > END_SECONDS
            is_over = given_up or not self._agent.is_alive()
            messages = self._ranks.hear(0 if is_over else HEAR_SECONDS)
            if end and not is_over and not self._killed_at:
                self._killed_at = time.monotonic()
                self._ranks.kill()
            self._alone_at = time.monotonic() + ORPHAN_SECONDS
            codes = None if not is_over else {} if self._killed_at else self._codes or {}
            return _Report(messages, codes, self._trace if is_over and not self._killed_at else "")

        return answer(report)


@dataclass(frozen=True)
class _Unpickled:
    """Work that only a rank unpickles, with what it imports."""

    content: bytes

    def __call__(self, rank: Rank) -> Any:
        return pickle.loads(self.content)(rank)


@dataclass
class _Node:
    """A node as the caller sees it."""

    actor: Any
    name: str = ""
    address: str = ""
    call: Any = None
    """The answer that is awaited."""
    heard_at: float = field(default_factory=time.monotonic)
    codes: Mapping[int, int] | None = None
    """Of its ranks, once they have ended."""
    trace: str = ""
    """Of its agent, if that failed."""
    lost: str = ""
    """Why it is given up."""

    @property
    def is_over(self) -> bool:
        return self.codes is not None or bool(self.lost)


def refuse_few_nodes(address: str, nodes: int, gpus_each: int) -> None:
    """Refuse a cluster without so many nodes.

    Args:
        address: of Ray's head node.
        gpus_each: GPUs that a training needs on each node, if the cluster has any.
    Raises:
        EnvironmentProblem: if there is no cluster, or it has too few nodes.
    """
    with connected(address, what=f"training: nodes: {nodes}") as ray:
        _needs(ray, nodes, gpus_each)


def run_on_nodes(
    work: Callable[[Rank], T],
    spread: Spread,
    *,
    folder: Path,
    emit: Emit,
    stop_requested: Callable[[], int | None],
    address: str,
    name: str,
) -> RanksResult[T]:
    """See `run_ranks`. The nodes print into files `node-1.log` and so on in the folder."""
    content = pickle.dumps(work)
    with (
        connected(address, what=f"training: nodes: {spread.nodes}") as ray,
        beacon_in(folder) as beacon,
        _emitting(emit) as emit_later,
    ):
        crew = _Crew(ray, spread, stop_requested, emit_later)
        try:
            crew.reserve(name)
            crew.start(Surroundings.here(beacon), content, folder)
            return crew.run()
        finally:
            crew.end()


@contextmanager
def _emitting(emit: Emit) -> Iterator[Emit]:
    """Events go to the caller from a thread: where he is slow, the nodes must not wait for our questions."""
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def hand_on() -> None:
        while (event := events.get()) is not None:
            emit(event)

    thread = threading.Thread(target=hand_on, name="emit", daemon=True)
    thread.start()
    try:
        yield events.put
    finally:
        events.put(None)
        thread.join()


class _Crew:
    """The nodes of one training."""

    def __init__(self, ray: Any, spread: Spread, stop_requested: Callable[[], int | None], emit: Emit) -> None:
        self._ray = ray
        self._spread = spread
        self._stop_requested = stop_requested
        self._emit = emit
        self._group: Any = None
        self._nodes: list[_Node] = []

    def reserve(self, name: str) -> None:
        """Wait until every node has room, and keep it: all of them or none, so that no two trainings wait for each other."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        nodes = self._spread.nodes
        needs = _needs(self._ray, nodes, self._spread.processes_each)
        self._group = placement_group([needs] * nodes, strategy="STRICT_SPREAD")
        began, noted = time.monotonic(), False
        while not self._group.wait(1):
            self._check_stop()
            _needs(self._ray, nodes, self._spread.processes_each)  # one of them may be gone
            if not noted and time.monotonic() - began > WAIT_NOTE_SECONDS:
                noted = True
                self._emit(Note(stage=name, text=f"waiting for {nodes} nodes of the Ray cluster that have room"))
        for number in range(nodes):
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
            options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "max_restarts": 0, "max_task_retries": 0}
            actor = self._ray.remote(**options, scheduling_strategy=place)(NodeRanks)
            self._nodes.append(_Node(actor.remote()))

    def start(self, surroundings: Surroundings, work: bytes, folder: Path) -> None:
        """Start the ranks, those of this machine first if it is one of the nodes."""
        carried = self._ray.put(surroundings)
        threads = {name: os.environ[name] for name in (THREADS, *SPINNING) if name in os.environ}
        for node, (name, address) in zip(self._nodes, self._ask("begin", lambda _: (carried, threads)), strict=True):
            node.name, node.address = name, address
        here = self._ray.util.get_node_ip_address()
        self._nodes.sort(key=lambda node: (node.address != here, node.address))
        for number, node in enumerate(self._nodes, start=1):
            node.name = f"node {number} of {self._spread.nodes} ({node.name}, {node.address})"
        [port] = self._ask("open", lambda _: (self._spread.nodes,), nodes=self._nodes[:1])
        content, address = self._ray.put(work), self._nodes[0].address
        folders = [(folder / f"node-{number}").absolute() for number in range(1, self._spread.nodes + 1)]
        self._ask("start", lambda number: (content, self._spread, number, address, port, folders[number]))

    def _ask(self, method: str, arguments: Callable[[int], tuple[Any, ...]], nodes: list[_Node] | None = None) -> list[Any]:
        """What a method of the actors answers, in their order."""
        from ray.exceptions import RayError, RayTaskError

        calls = [
            getattr(node.actor, method).remote(*arguments(number)) for number, node in enumerate(nodes or self._nodes)
        ]  # fmt: skip
        waiting = calls
        while waiting:
            _, waiting = self._ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
            self._check_stop()
        try:
            return [open_answer(self._ray.get(call)) for call in calls]
        except RayTaskError as error:
            raise cannot_start("a node of the Ray cluster cannot start its ranks", error) from error
        except RayError as error:
            raise StageError(
                f"a node of the Ray cluster died before the training began: {reason_of_death(error)}",
                hint=f"{AGAIN} Ray's logs on that node say more.",
            ) from error

    def _check_stop(self) -> None:
        if (number := self._stop_requested()) is not None:
            raise Interrupted("Stopped before the training began.", signal_number=number)

    def run(self) -> RanksResult[Any]:
        """Serve the ranks to their end."""
        watch = Watch(self._spread, self._emit, self._stop_requested, [node.name for node in self._nodes])
        ending = False
        for node in self._nodes:
            node.heard_at = time.monotonic()
        while running := [node for node in self._nodes if not node.is_over]:
            for node in running:
                if node.call is None:
                    node.call = node.actor.hear.remote(watch.stop_number(), ending)
            ready, _ = self._ray.wait([node.call for node in running], num_returns=1, timeout=POLL_SECONDS)
            for node in running:
                if node.call in ready:
                    self._take(node, watch)
                elif (silent := time.monotonic() - node.heard_at) > SILENT_SECONDS:
                    node.lost = f"{node.name} has not answered for {silent:.0f} s"
            # Another node that is gone, too, is found by asking it: it may be why these ranks failed.
            ending = ending or watch.finds_hang() or any(node.lost or node.codes or node.trace for node in self._nodes)
        lost = [node.lost for node in self._nodes if node.lost]
        if not lost and (failed := next((node for node in self._nodes if node.trace), None)) is not None:
            raise RankBug(f"torch's agent on {failed.name}", failed.trace)
        codes = {rank: code for node in self._nodes for rank, code in (node.codes or {}).items()}
        return watch.result(codes, lost)

    def _take(self, node: _Node, watch: Watch) -> None:
        from ray.exceptions import RayError

        call, node.call = node.call, None
        try:
            report: _Report = open_answer(self._ray.get(call))
        except RayError as error:
            node.lost = f"{node.name} is gone: {reason_of_death(error)}"
            return
        node.heard_at, node.codes, node.trace = time.monotonic(), report.codes, report.trace
        for rank, message in report.messages:
            watch.take(rank, message)

    def end(self) -> None:
        """Give the nodes back. Ranks that are still there end with their actor."""
        from ray.util.placement_group import remove_placement_group

        with suppress(Exception):  # the cluster may be gone
            for node in self._nodes:
                self._ray.kill(node.actor, no_restart=True)
            if self._group is not None:
                remove_placement_group(self._group)


def _needs(ray: Any, nodes: int, gpus_each: int) -> dict[str, int]:
    """What a node must have; raises EnvironmentProblem if there are not so many such nodes, busy ones counted."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"CPU": 1} | ({"GPU": gpus_each} if any("GPU" in node for node in there) else {})
    fit = sum(all(node.get(kind, 0) >= count for kind, count in needs.items()) for node in there)
    if fit < nodes:
        text = " and ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in needs.items())
        have = f"{fit} of the {len(there)} nodes of the Ray cluster {'has' if fit == 1 else 'have'} {text}"
        raise EnvironmentProblem(
            f"training: nodes: {nodes}, but {have}",
            hint="`ray status` lists the nodes. Start Ray on the others, or write smaller numbers into the machine file.",
        )
    return needs
