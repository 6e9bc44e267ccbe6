"""The processes of two nodes train what one process trains: DDP and FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch

from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import ALONE, Spread
from align.testing import tiny_causal_lm
from align.testing.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")]

KINDS = ("sft", "dpo")
# As of the processes of one machine; see test_ranks_training.
CURVES, WEIGHTS = 1e-5, 1e-6


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    pytest.importorskip("ray")
    nodes = RayNodes(2, cpus=1)
    yield nodes
    nodes.close()


def test_losses_gradient_norms_and_weights_are_those_of_one_process(nodes: RayNodes, tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "base", texts=["hello there", "안녕"] * 5, seed=1)
    bases = dict.fromkeys(KINDS, tmp_path / "base")
    alone = rank_work.train_all(
        Rank(0, 1, lambda event: None, lambda: None), bases=bases, work=tmp_path / "alone", spread=ALONE
    )  # fmt: skip
    for strategy in ("ddp", "fsdp2"):
        spread, folder = Spread(2, strategy, nodes=2), tmp_path / strategy
        work: Any = partial(rank_work.train_all, bases=bases, work=folder, spread=spread)
        together = run_ranks(
            work, spread, folder=folder / "ranks", emit=lambda event: None, stop_requested=lambda: None, address=nodes.address
        ).value
        for kind in KINDS:
            found, expected = together[kind], alone[kind]
            assert expected is not None
            assert found.is_sharded == (strategy == "fsdp2")
            assert len(found.curve) == len(expected.curve) == 6
            for row, expected_row in zip(found.curve, expected.curve, strict=True):
                assert row == pytest.approx(expected_row, rel=CURVES, abs=CURVES), kind
            for name, weight in expected.weights.items():
                torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=WEIGHTS, msg=f"{kind}: {name}")
