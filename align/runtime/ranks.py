"""One piece of work in several processes that compute together: the ranks of a training.

torch's elastic agent, which torchrun runs, starts the processes, gives each its rank and ends all of them when one dies. What it
does not do is here: events and the result of rank 0 reach the caller, a request to stop reaches every rank, a rank that hangs is
found, and the error that is raised is that of the rank that failed first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from align.runtime.events import Emit
from align.runtime.gpus import visible_gpus
from align.runtime.local_ranks import LOOPBACK, LocalRanks, Meeting
from align.runtime.rank import Rank
from align.runtime.rank_watch import RanksResult, Watch
from align.runtime.spread import Spread

POLL_SECONDS = 0.2

T = TypeVar("T")


def run_ranks(
    work: Callable[[Rank], T],
    spread: Spread,
    *,
    folder: Path,
    emit: Emit,
    stop_requested: Callable[[], int | None],
    address: str = "auto",
    name: str = "",
) -> RanksResult[T]:
    """Call `work` in every rank, in processes that form a process group of torch: of this machine, or of nodes of a Ray cluster.

    Args:
        work: picklable, and of a module. It ends in all ranks, or raises.
        folder: for files of the agents; removed by the caller. Every node sees it under this path.
        emit: called in another thread than this one.
        address: of Ray's head node; used if there are several nodes.
        name: of the stage, for events.
    Raises:
        AlignError: what a rank raised; that of the first, if several did.
        Interrupted: if ranks stopped after a request.
        StageError: if a rank died or hung, or a node.
        EnvironmentProblem: if the cluster does not have the nodes, or one is set up differently.
        RankBug: if a rank raised anything else.
    """
    if spread.nodes > 1:
        from align.runtime.ray_ranks import run_on_nodes

        return run_on_nodes(work, spread, folder=folder, emit=emit, stop_requested=stop_requested, address=address, name=name)
    # A fork has the trainers imported already, but CUDA does not survive one.
    ranks = LocalRanks(spread, start_method="spawn" if visible_gpus() else "fork")
    watch, over = Watch(spread, emit, stop_requested), threading.Event()
    listener = threading.Thread(target=_listen, args=(ranks, watch, over), name="ranks", daemon=True)
    listener.start()
    try:
        codes = ranks.run(work, Meeting.opened(LOOPBACK), folder)
    finally:
        over.set()
        listener.join()
    return watch.result(codes)


def _listen(ranks: LocalRanks, watch: Watch, over: threading.Event) -> None:
    """Serve the ranks, while the agent runs in the caller's thread."""
    told = ended = False
    while True:
        watch.awake()
        last = over.is_set()  # what is left in the pipes is read once more
        for rank, message in ranks.hear(0 if last else POLL_SECONDS):
            watch.take(rank, message)
        if last:
            return
        if not told and (number := watch.stop_number()) is not None:
            told = True
            ranks.tell_to_stop(number)
        if not ended and watch.finds_hang():
            ended = True
            ranks.kill()
