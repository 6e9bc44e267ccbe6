"""Work mapped over actors of a Ray cluster: as over processes, but the items of workers and nodes that die are taken over."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from executor_work import (
    EngineDeadError,
    begin_and_wait,
    die,
    die_once,
    fail,
    fail_unforeseen,
    lose_the_engine,
    lose_the_engine_once,
    slow_when_even,
    touch_slowly,
    variable,
)

from align.errors import DataError, EnvironmentProblem, Interrupted
from align.runtime.executor import Inline, Processes, executor_for
from align.runtime.gpus import GPU_VARIABLE
from align.runtime.item_flow import WorkerDied
from align.runtime.pool import Pool
from align.runtime.ray_cluster import wait_for_nodes
from align.runtime.ray_pool import RayPool, Surroundings, engine_is_dead
from align.testing.ray_nodes import RayNodes

# Ray's own, in the process that starts nodes.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    pytest.importorskip("ray")
    nodes = RayNodes(2, cpus=2, gpus=2)
    yield nodes
    nodes.close()


def results(pool: RayPool, work: Callable[[Any], object], count: int, **options: object) -> list[tuple[int, object]]:
    done: list[tuple[int, object]] = []
    pool.map(work, range(count), on_done=lambda item, result: done.append((item, result)), **options)  # type: ignore[arg-type]
    return done


def test_every_item_is_done_once_in_order_where_that_is_wanted(nodes: RayNodes) -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = results(RayPool(3, address=nodes.address), slow_when_even, 9, in_order=True)
    assert done == [(item, item * item) for item in range(9)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_items_of_workers_that_die_are_taken_over(nodes: RayNodes, tmp_path: Path) -> None:
    done = results(RayPool(2, address=nodes.address), partial(die_once, tmp_path), 9)
    assert sorted(done) == [(item, item * item) for item in range(9)]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_item_that_kills_three_workers_is_named(nodes: RayNodes) -> None:
    with pytest.raises(WorkerDied, match=r"item 2 \(2\): 3 workers died with it"):
        results(RayPool(2, address=nodes.address), die, 5)


def test_a_worker_whose_engine_is_dead_is_replaced(nodes: RayNodes, tmp_path: Path) -> None:
    done: list[Any] = results(RayPool(1, address=nodes.address), partial(lose_the_engine_once, tmp_path), 3)
    assert [item for item, _ in done] == [0, 1, 2]
    (first, second) = dict.fromkeys(process for _, (_, process) in done)
    assert first == int((tmp_path / "dead").read_text()) != second
    with pytest.raises(WorkerDied, match="its engine died: nothing comes back for 0"):
        results(RayPool(1, address=nodes.address), lose_the_engine, 3)


def test_errors_of_the_work_reach_the_caller(nodes: RayNodes) -> None:
    with pytest.raises(DataError) as caught:
        results(RayPool(2, address=nodes.address), fail, 5)
    assert (caught.value.message, caught.value.hint) == ("rows.jsonl:3: wrong", "Correct it.")
    with pytest.raises(KeyError, match="colour") as unforeseen:
        results(RayPool(2, address=nodes.address), fail_unforeseen, 2)
    assert "in fail_unforeseen" in str(unforeseen.value.__cause__)


def test_a_stop_lets_the_items_under_way_end_and_begins_no_other(nodes: RayNodes, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.done" for number in range(8)]
    reported: list[Path] = []

    def check_stop() -> None:
        if any(tmp_path.glob("*.begun")):
            raise Interrupted("Stopped.", signal_number=signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        RayPool(2, address=nodes.address).map(
            touch_slowly, paths, on_done=lambda path, _: reported.append(path), check_stop=check_stop
        )
    assert caught.value.signal_number == signal.SIGTERM
    finished = sorted(tmp_path.glob("*.done"))
    assert 1 <= len(finished) <= 2
    assert sorted(reported) == finished == sorted(path.with_suffix(".done") for path in tmp_path.glob("*.begun"))


def test_each_worker_has_gpus_of_its_own_and_the_environment_of_this_process(
    nodes: RayNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str | None] = []
    RayPool(9, gpus_each=2, address=nodes.address).map(variable, [GPU_VARIABLE] * 6, on_done=lambda _, found: done.append(found))
    assert set(done) == {"0,1"}  # of two nodes
    monkeypatch.setenv("HF_TOKEN", "secret")
    names = ["HF_HUB_OFFLINE", "DO_NOT_TRACK", "HF_TOKEN"]
    found: list[str | None] = []
    RayPool(1, address=nodes.address).map(variable, names, on_done=lambda _, value: found.append(value))
    assert found == ["1", "1", None]
    with pytest.raises(EnvironmentProblem, match="needs 1 CPU and 99 GPU on one node"):
        results(RayPool(1, gpus_each=99, address=nodes.address), slow_when_even, 2)


def test_the_items_of_a_node_that_dies_are_done_on_another(nodes: RayNodes, tmp_path: Path) -> None:
    """Item 0 waits until its node is killed. It is the last test with these nodes."""

    def kill_node() -> None:
        for begun in tmp_path.glob("*.begun"):
            raylet = int(begun.read_text())
            os.kill(raylet, signal.SIGKILL)
            os.waitpid(raylet, 0)  # a zombie, as which it counts as alive for Ray, until other signs tell after 15 seconds
            begun.rename(begun.with_suffix(".killed"))

    done: list[int] = []
    # As many workers as there is room for: some are on the other node.
    RayPool(4, address=nodes.address, shared=tmp_path).map(
        partial(begin_and_wait, tmp_path), range(4), on_done=lambda item, _: done.append(item), check_stop=kill_node
    )
    assert sorted(done) == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["0.killed"]


@pytest.mark.parametrize(
    ("address", "problem"),
    [("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"), ("ray://head:10001", "not HOST:PORT"), ("head", "not HOST:PORT")],
)
def test_an_address_without_a_cluster_is_refused_at_once(address: str, problem: str) -> None:
    with pytest.raises(EnvironmentProblem, match=problem):
        results(RayPool(2, address=address), slow_when_even, 2)


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="not installed") as caught:
        results(RayPool(2), slow_when_even, 2)
    assert "align-llm[ray]" in str(caught.value.hint)


def test_a_node_that_is_set_up_differently_is_named(tmp_path: Path) -> None:
    here = Surroundings.here(None)
    with pytest.raises(EnvironmentProblem, match=f"has align {re.escape(here.version)}, this run has 0.0"):
        replace(here, version="0.0").enter()
    with pytest.raises(EnvironmentProblem, match=f"does not see {tmp_path} of"):
        replace(here, beacon=tmp_path / ".shared-1").enter()


def test_an_engine_is_dead_if_an_error_or_its_cause_says_so() -> None:
    caused = RuntimeError("sampling failed")
    caused.__cause__ = EngineDeadError()
    assert [engine_is_dead(error) for error in (caused, EngineDeadError(), RuntimeError(), None)] == [True, True, False, False]


def test_a_job_waits_until_its_nodes_are_one_cluster(nodes: RayNodes) -> None:
    wait_for_nodes(nodes.address, 2)
    with pytest.raises(EnvironmentProblem, match=r"has \d+ of 90 nodes after 0 seconds"):
        wait_for_nodes(nodes.address, 90, seconds=0.1)


def test_the_pool_decides_which_executor_works(tmp_path: Path) -> None:
    pool = Pool("ray", "10.0.0.1:6379")
    found = executor_for(4, 3, gpus_each=1, pool=pool, shared=tmp_path)
    assert found == RayPool(3, gpus_each=1, address="10.0.0.1:6379", shared=tmp_path)
    assert executor_for(1, 3, pool=pool) == RayPool(1, address="10.0.0.1:6379")  # the node of the driver may have no GPU
    assert isinstance(executor_for(4, 0, pool=pool), Inline)
    assert executor_for(4, 3, pool=Pool()) == Processes(3)
