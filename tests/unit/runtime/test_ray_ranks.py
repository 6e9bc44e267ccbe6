"""Ranks on the nodes of a Ray cluster: how they end, and what is said about it. What they compute is tested with trainings."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rank_jobs

from align.errors import EnvironmentProblem, Interrupted, StageError
from align.runtime.events import Event, Note
from align.runtime.local_ranks import interface_of
from align.runtime.ranks import run_ranks
from align.runtime.ray_ranks import refuse_few_nodes
from align.runtime.spread import Spread
from align.testing.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")]


def run(
    two_nodes: RayNodes, work: Callable[..., Any], folder: Path, *, stop: Callable[[], int | None] = lambda: None
) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    spread = Spread(2, "ddp", 5.0, nodes=2)
    found = run_ranks(
        work, spread, folder=folder / "ranks", emit=events.append, stop_requested=stop, address=two_nodes.address
    )  # fmt: skip
    return found.value, events


def test_ranks_of_two_nodes_are_one_group_and_a_stop_reaches_all(two_nodes: RayNodes, tmp_path: Path) -> None:
    seen: list[Event] = []

    def stop() -> int | None:
        return signal.SIGTERM if (tmp_path / "ready").exists() else None

    spread = Spread(2, "ddp", 5.0, nodes=2)
    with pytest.raises(Interrupted) as caught:
        run_ranks(
            rank_jobs.TalkUntilStopped(tmp_path / "ready"),
            spread,
            folder=tmp_path / "ranks",
            emit=seen.append,
            stop_requested=stop,
            address=two_nodes.address,
        )
    assert caught.value.signal_number == signal.SIGTERM
    assert [event.text for event in seen if isinstance(event, Note)] == ["from 0: [0, 1]"]


def test_a_rank_that_is_killed_is_named_with_its_node(two_nodes: RayNodes, tmp_path: Path) -> None:
    started = time.monotonic()
    message = r"rank 1 of 2 on node 2 of 2 \(.+, 127\.0\.0\.1\) was killed by signal 9 \(SIGKILL\) before it was done"
    with pytest.raises(StageError, match=message):
        run(two_nodes, rank_jobs.die, tmp_path)
    assert time.monotonic() - started < 60


def test_a_cluster_with_too_few_nodes_is_refused(two_nodes: RayNodes) -> None:
    # The head has no CPU.
    with pytest.raises(EnvironmentProblem, match=r"training: nodes: 3, but 2 of the 3 nodes of the Ray cluster have 1 CPU"):
        refuse_few_nodes(two_nodes.address, 3, 1)
    with pytest.raises(EnvironmentProblem, match="no Ray cluster answers at 127.0.0.1:1"):
        refuse_few_nodes("127.0.0.1:1", 2, 1)
    refuse_few_nodes(two_nodes.address, 2, 8)  # without GPUs, their number does not matter


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_a_node_that_dies_before_its_ranks_start_is_an_error_of_the_stage(two_nodes: RayNodes, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_node() -> None:
        if not killed:
            killed.append(two_nodes.raylets[0])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(StageError, match="a node of the Ray cluster died before the training began: ") as caught:
        run(two_nodes, rank_jobs.die, tmp_path, stop=kill_node)
    assert "Run the same command again" in str(caught.value)
    two_nodes.replace(killed[0])


def test_a_node_that_dies_is_named(two_nodes: RayNodes, tmp_path: Path) -> None:
    """It is the last test with these nodes."""

    def kill_node() -> None:
        if (tmp_path / "ready").exists():
            os.kill(two_nodes.raylets[0], signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(StageError, match=r"node \d of 2 \(.+, 127\.0\.0\.1\) is gone: .*; all ranks were ended") as caught:
        run(two_nodes, rank_jobs.TalkUntilStopped(tmp_path / "ready"), tmp_path, stop=kill_node)
    assert "Run the same command again to go on from the last checkpoint." in str(caught.value)
    assert len(caught.value.render().splitlines()) <= 15
    assert time.monotonic() - started < 90
