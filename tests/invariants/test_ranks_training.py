"""Several processes train what one trains: DDP and FSDP2, whatever they share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch
from rank_work import Trained

from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import ALONE, Spread
from align.testing import tiny_causal_lm

pytestmark = pytest.mark.slow

KINDS = ("sft", "tied", "recompute", "lora", "dpo", "orpo", "reward_model", "kto")
SPREADS = (Spread(2, "ddp"), Spread(2, "fsdp2"), Spread(4, "fsdp2"), Spread(1, "fsdp2"))
# Sums in another order. Measured in float32: curves 6e-7 of a number, weights 6e-8.
CURVES, WEIGHTS = 1e-5, 1e-6


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a head of its own, and one whose head is its embedding."""
    folder = tmp_path_factory.mktemp("bases")
    for tied in (False, True):
        tiny_causal_lm(folder / str(tied), texts=["hello there", "안녕"] * 5, seed=1, tie_word_embeddings=tied)
    return {kind: folder / str(kind == "tied") for kind in KINDS}


@pytest.fixture(scope="module")
def alone(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    rank = Rank(0, 1, lambda event: None, lambda: None)
    return rank_work.train_all(rank, bases=bases, work=tmp_path_factory.mktemp("alone"), spread=ALONE)


def run(bases: dict[str, Path], folder: Path, spread: Spread) -> dict[str, Trained]:
    work: Any = partial(rank_work.train_all, bases=bases, work=folder, spread=spread)
    return run_ranks(work, spread, folder=folder / "ranks", emit=lambda event: None, stop_requested=lambda: None).value


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_losses_gradient_norms_and_weights_are_those_of_one_process(
    bases: dict[str, Path], alone: dict[str, Trained], tmp_path: Path, spread: Spread
) -> None:
    together = run(bases, tmp_path, spread)
    for kind in KINDS:
        one, several = alone[kind], together[kind]
        assert several.is_sharded == (spread.strategy == "fsdp2"), kind
        assert len(one.curve) == len(several.curve) == 6
        for expected, found in zip(one.curve, several.curve, strict=True):
            assert found == pytest.approx(expected, rel=CURVES, abs=CURVES), kind
        assert one.weights.keys() == several.weights.keys(), kind
        for name, expected_weight in one.weights.items():
            torch.testing.assert_close(several.weights[name], expected_weight, rtol=0, atol=WEIGHTS, msg=f"{kind}: {name}")


def test_equal_numbers_of_processes_give_equal_bytes(bases: dict[str, Path], tmp_path: Path) -> None:
    some = {kind: bases[kind] for kind in ("sft", "dpo")}
    first, second = (run(some, tmp_path / name, Spread(2, "fsdp2")) for name in ("first", "second"))
    for kind in some:
        assert first[kind].curve == second[kind].curve
        assert all(torch.equal(value, second[kind].weights[name]) for name, value in first[kind].weights.items())
