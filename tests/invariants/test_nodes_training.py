"""The processes of two nodes train what one process trains: DDP and FSDP2."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import node_work
import online_rank_work
import pytest
import torch

from align.errors import StageError
from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import ALONE, Spread
from align.testing import tiny_causal_lm
from align.testing.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")]

KINDS, ONLINE = ("sft", "dpo"), ("ppo", "lora")
# As of the processes of one machine; see test_ranks_training.
CURVES, WEIGHTS = 1e-5, 1e-6


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    online_rank_work.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def trained(two_nodes: RayNodes, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What one process trains, and what two nodes do, in folders named by the strategy; and what they return."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_causal_lm(folder / "base", texts=["hello there", "안녕"] * 5, seed=1)
    given: Any = {"bases": dict.fromkeys(KINDS, folder / "base"), "inputs": inputs, "online": ONLINE}
    alone = Rank(0, 1, lambda event: None, lambda: None)
    found: dict[str, Any] = {"single": node_work.train(alone, **given, folder=folder / "single", spread=ALONE)}
    for strategy in ("ddp", "fsdp2"):
        spread = Spread(2, strategy, nodes=2)
        work: Any = partial(node_work.train, **given, folder=folder / strategy, spread=spread)
        ranks = folder / strategy / "ranks"
        found[strategy] = run_ranks(
            work, spread, folder=ranks, emit=lambda event: None, stop_requested=lambda: None, address=two_nodes.address
        ).value
    return folder, found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_losses_gradient_norms_and_weights_are_those_of_one_process(trained: Any, strategy: str) -> None:
    folder, outcomes = trained
    (together, _), (alone, _) = outcomes[strategy], outcomes["single"]
    for kind in KINDS:
        found, expected = together[kind], alone[kind]
        assert found.is_sharded == (strategy == "fsdp2")
        assert len(found.curve) == len(expected.curve) == 6 + 2
        for row, expected_row in zip(found.curve, expected.curve, strict=True):
            assert row == pytest.approx(expected_row, rel=CURVES, abs=CURVES), kind
        for name, weight in expected.weights.items():
            torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=WEIGHTS, msg=f"{kind}: {name}")
    for kind in ONLINE:
        online_rank_work.assert_same(folder / strategy, folder / "single", kind)


def test_an_online_training_is_stopped_and_killed_and_goes_on(
    two_nodes: RayNodes, inputs: Path, trained: Any, tmp_path: Path
) -> None:
    """The first node has the engine; a rank of the other is killed."""
    run: Any = partial(
        online_rank_work.run_kinds, inputs, tmp_path, Spread(2, "fsdp2", nodes=2), ("ppo",), address=two_nodes.address
    )
    checkpoints = tmp_path / "ppo" / "output" / "work" / "checkpoints"
    with pytest.raises(StageError, match=r"rank 1 of 2 on node 2 of 2 \(.+, 127\.0\.0\.1\) was killed by signal 9"):
        run(killed=True, stop_at=online_rank_work.STOP_AT, checkpoint_steps=1)
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-1"]
    seen: list[Any] = []  # they go on from there
    assert run(emit=seen.append, stop=lambda: signal.SIGTERM if seen else None) == {"ppo": None}
    run()
    online_rank_work.assert_equal(tmp_path, trained[0] / "fsdp2", "ppo")
