"""Workers that are actors of a Ray cluster: on its nodes, each with GPUs of its own.

Ray places the actors and reports their deaths; this process decides everything else. It hands out the items, and one whose
worker died goes to another worker. Ray neither restarts an actor nor repeats a call, so that the number of attempts is counted
in one place. A worker that was given up may still be at work somewhere: an item must be one that two workers can do, such as a
shard file that has the same content whoever writes it.
"""

from __future__ import annotations

import os
import pickle
import reprlib
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from align.errors import EnvironmentProblem, StageError
from align.runtime.item_flow import POLL_SECONDS, ItemFlow, WorkerDied, answer, never_stop, open_answer
from align.runtime.ray_cluster import connected

DISTRIBUTION = "align-llm"
MOST_DEATHS = 3
"""Workers that one item may cost, or one place may lose in a row at their start."""
CARRIED = (
    *("ALIGN_", "DO_NOT_TRACK", "GLOO_", "HF_", "NCCL_", "TOKENIZERS_", "TQDM_", "TRANSFORMERS_"),
    *("VLLM_", "WANDB_MODE"),
)
"""Beginnings of the variables that workers take over from this process: what tunes libraries and keeps them quiet."""
SECRETS = ("_TOKEN", "_KEY", "_SECRET", "_PASSWORD")
REASON_CHARACTERS = 300
LOOK_SECONDS = 30.0
"""How often to look whether the cluster still has room for a worker, while none works."""

T = TypeVar("T")
R = TypeVar("R")


class EngineDied(StageError):
    """Raised by a worker whose engine cannot work any more. The worker is replaced, as if its process had died."""


@dataclass(frozen=True)
class RayPool:
    """Works in actors of a Ray cluster that runs already; they start with every `map` and end after it."""

    num_workers: int
    gpus_each: int = 0
    """GPUs that Ray reserves for a worker, all on one node; without effect in a cluster that has none."""
    address: str = "auto"
    """Of Ray's head node, as host:port; auto: of the cluster that runs on this machine."""
    shared: Path | None = None
    """A folder that every node must see, as it is here; None: not checked."""

    def map(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        *,
        on_done: Callable[[T, R], None],
        check_stop: Callable[[], None] = never_stop,
        in_order: bool = False,
    ) -> None:
        """See `Executor.map`.

        An item whose worker died, alone or with its node, is given to another worker. So `work` may be called more than once
        with an item, and two calls may overlap; `on_done` gets one result.

        Raises:
            WorkerDied: if an item cost MOST_DEATHS workers, or workers die at their start. It names the item.
            EnvironmentProblem: if there is no cluster, no node has room for a worker, or a node is set up differently.
        """
        content = pickle.dumps(work)
        flow = ItemFlow(items, on_done, check_stop, in_order=in_order)
        first = flow.first(self.num_workers)
        if not first:
            return
        with connected(self.address) as ray, beacon_in(self.shared) as beacon:
            crew = _Crew(ray, self.gpus_each, Surroundings.here(beacon), content, flow)
            try:
                crew.start([_Task(number, item) for number, item in first])
                crew.run()
            finally:
                crew.kill()


@contextmanager
def beacon_in(folder: Path | None) -> Iterator[Path | None]:
    """A file by which a worker sees that a folder of its node is the one of this process."""
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / f".shared-{secrets.token_hex(4)}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Surroundings:
    """What a worker takes over from this process before it imports anything of the work."""

    version: str
    folder: str
    search_path: tuple[str, ...]
    environment: Mapping[str, str]
    beacon: Path | None

    @classmethod
    def here(cls, beacon: Path | None) -> Surroundings:
        """Those of this process."""
        environment = {
            name: value for name, value in os.environ.items() if name.startswith(CARRIED) and not name.endswith(SECRETS)
        }
        return cls(version(DISTRIBUTION), os.getcwd(), tuple(sys.path), environment, beacon)

    def enter(self) -> None:
        """Make them those of this process; raises EnvironmentProblem if the node lacks them."""
        node = os.uname().nodename
        if (found := version(DISTRIBUTION)) != self.version:
            raise EnvironmentProblem(
                f"node {node} of the Ray cluster has align {found}, this run has {self.version}",
                hint="Install the same version on every node.",
            )
        if not Path(self.folder).is_dir() or (self.beacon is not None and not self.beacon.exists()):
            missing = self.folder if self.beacon is None else self.beacon.parent
            raise EnvironmentProblem(
                f"node {node} of the Ray cluster does not see {missing} of the machine that runs this",
                hint="Run in a folder on a file system that all nodes mount at the same path.",
            )
        os.chdir(self.folder)
        os.environ.update(self.environment)
        sys.path.extend(path for path in self.search_path if path not in sys.path)


class Worker:
    """The actor: one copy of the work, and the items one after another."""

    def begin(self, surroundings: Surroundings, content: bytes) -> bytes:
        """Prepare for the first item; answered when the process is up."""
        self._content = content
        self._work: Callable[[Any], Any] | None = None
        return answer(surroundings.enter)

    def do(self, item: bytes) -> bytes:
        """Work on an item."""

        def call() -> Any:
            self._work = self._work or pickle.loads(self._content)
            try:
                return self._work(pickle.loads(item))
            except Exception as error:
                if engine_is_dead(error):
                    raise EngineDied(f"its engine died: {error}") from error
                raise

        reply = answer(call)
        sys.stdout.flush()
        sys.stderr.flush()
        return reply


def engine_is_dead(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a vLLM engine can do nothing any more.

    Recognised by name: importing vLLM takes seconds.
    """
    while error is not None:
        if any(kind.__name__ == "EngineDeadError" for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class _Task(Generic[T]):
    number: int
    item: T
    deaths: int = 0


@dataclass
class _Place(Generic[T]):
    """A worker, and those before it that died."""

    actor: Any
    task: _Task[T] | None = None
    """None: it is starting, or waits for an item."""
    failed_starts: int = 0
    """In a row."""


class _Crew(Generic[T, R]):
    """The workers of one `map`."""

    def __init__(self, ray: Any, gpus_each: int, surroundings: Surroundings, content: bytes, flow: ItemFlow[T, R]) -> None:
        self._ray = ray
        self._flow = flow
        self._gpus_each = gpus_each
        # Put once, not once per worker: Ray copies it to each node.
        self._arguments = [ray.put(surroundings), ray.put(content)]
        self._queue: deque[_Task[T]] = deque()
        self._places: list[_Place[T]] = []
        self._free: deque[_Place[T]] = deque()
        # In the order in which they were called, so that `wait` prefers the one that has waited longest.
        self._calls: dict[Any, _Place[T]] = {}

    def start(self, first: Iterable[_Task[T]]) -> None:
        """Order a worker for each of the first items, but no more than the cluster has room for."""
        self._queue.extend(first)
        if not any("GPU" in node for node in self._nodes()):
            self._gpus_each = 0
        room = self._room()
        options = {"num_cpus": 1, "num_gpus": self._gpus_each, "max_restarts": 0, "max_task_retries": 0}
        self._actor = self._ray.remote(**options)(Worker)
        for _ in range(min(len(self._queue), room)):
            place: _Place[T] = _Place(None)
            self._places.append(place)
            self._fill(place)

    def _nodes(self) -> list[Mapping[str, float]]:
        """What each living node has, used or not."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        """Workers for which the cluster is large enough; raises EnvironmentProblem if there is none."""
        nodes = self._nodes()
        each = {"CPU": 1} | ({"GPU": self._gpus_each} if self._gpus_each else {})
        room = sum(min(int(node.get(kind, 0)) // count for kind, count in each.items()) for node in nodes)
        if not room:
            largest = ", ".join(f"{max((int(node.get(kind, 0)) for node in nodes), default=0)} {kind}s" for kind in each)
            raise EnvironmentProblem(
                f"a worker needs {' and '.join(f'{count} {kind}' for kind, count in each.items())} on one node of the Ray "
                f"cluster; its {len(nodes)} nodes have at most {largest}",
                hint="Lower tensor_parallel, or add such a node.",
            )
        return room

    def _fill(self, place: _Place[T]) -> None:
        place.actor, place.task = self._actor.remote(), None
        self._calls[place.actor.begin.remote(*self._arguments)] = place

    def run(self) -> None:
        look_at = time.monotonic() + LOOK_SECONDS
        while True:
            if self._flow.stop is None:
                self._hand_out()
            at_work = any(place.task for place in self._places)
            if self._flow.given_up or (not at_work and (self._flow.stop is not None or not self._queue)):
                break
            if at_work:
                look_at = time.monotonic() + LOOK_SECONDS
            elif time.monotonic() > look_at:
                self._room()  # the last node may be gone; else other work of the cluster has the places, and we wait
                look_at = time.monotonic() + LOOK_SECONDS
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=POLL_SECONDS)
            for call in ready:
                self._take(call, self._calls.pop(call))
            self._flow.check_stop()
        if self._flow.stop is not None:
            raise self._flow.stop

    def _hand_out(self) -> None:
        while self._free:
            if not self._queue:
                if (drawn := self._flow.draw(2 * len(self._places))) is None:
                    return
                self._queue.append(_Task(*drawn))
            place, place.task = self._free.popleft(), self._queue.popleft()
            self._calls[place.actor.do.remote(pickle.dumps(place.task.item))] = place

    def _take(self, call: Any, place: _Place[T]) -> None:
        """Receive an answer, or the news of a death."""
        from ray.exceptions import RayError, RayTaskError

        try:
            result = open_answer(self._ray.get(call))
        except EngineDied as error:
            self._replace(place, str(error))
            return
        except RayTaskError as error:
            # `answer` holds what the work raises: this one is older than it.
            raise cannot_start("a worker of the Ray cluster cannot start", error) from error
        except RayError as error:
            self._replace(place, reason_of_death(error))
            return
        task, place.task, place.failed_starts = place.task, None, 0
        self._free.append(place)
        if task is not None:
            self._flow.deliver(task.number, task.item, result)

    def _replace(self, place: _Place[T], reason: str) -> None:
        """A new worker for one that died; its item is the next to be handed out."""
        self._end(place)
        if self._flow.stop is not None:
            place.task = None
            return
        hint = "Ray's logs on that node say more; run the same command again to go on from here."
        if place.task is None:
            place.failed_starts += 1
            if place.failed_starts >= MOST_DEATHS:
                raise WorkerDied(f"{MOST_DEATHS} workers in a row died at their start: {reason}", hint=hint)
        else:
            place.task.deaths += 1
            if place.task.deaths >= MOST_DEATHS:
                item = f"item {place.task.number} ({reprlib.repr(place.task.item)})"
                raise WorkerDied(f"{item}: {MOST_DEATHS} workers died with it, the last so: {reason}", hint=hint)
            self._queue.appendleft(place.task)
        self._fill(place)

    def _end(self, place: _Place[T]) -> None:
        if place.actor is not None:
            with suppress(Exception):  # it is dead already, or the cluster is
                self._ray.kill(place.actor, no_restart=True)

    def kill(self) -> None:
        for place in self._places:
            self._end(place)


def cannot_start(problem: str, error: Exception) -> EnvironmentProblem:
    """A problem with what Ray says of it."""
    reason = " ".join(str(error).split())[-REASON_CHARACTERS:]
    return EnvironmentProblem(f"{problem}: {reason}", hint="Every node needs align and what it needs.")


def reason_of_death(error: Exception) -> str:
    """What Ray says about a death, without its list of possible causes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("pid:", "ip:"))]
    last = lines[-1].partition(" Some common causes")[0].rpartition("exit detail: ")[2] if lines else type(error).__name__
    return ", ".join([last, *told])[:REASON_CHARACTERS]
