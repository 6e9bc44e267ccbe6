"""Several processes train what one trains: DDP and FSDP2, whatever they share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch
from rank_work import Trained, assert_same, make_bases, run

from align.errors import EnvironmentProblem, StageError
from align.runtime.ranks import run_ranks
from align.runtime.spread import ALONE, Spread

pytestmark = pytest.mark.slow

KINDS = ("sft", "tied", "recompute", "momentum", "lora", "dpo", "orpo", "simpo", "reward_model", "kto")
SOME = ("sft", "lora", "dpo", "kto")
SPREADS = {Spread(2, "ddp"): KINDS, Spread(2, "fsdp2"): KINDS, **dict.fromkeys((Spread(4, "ddp"), Spread(4, "fsdp2")), SOME)}
SPREADS[Spread(1, "fsdp2")] = SOME[:1]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bases(tmp_path_factory.mktemp("bases"), KINDS)


@pytest.fixture(scope="module")
def alone(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return run(bases, tmp_path_factory.mktemp("alone"), ALONE)


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_losses_gradient_norms_and_weights_are_those_of_one_process(
    bases: dict[str, Path], alone: dict[str, Trained], tmp_path: Path, spread: Spread
) -> None:
    kinds = SPREADS[spread]
    together = run({kind: bases[kind] for kind in kinds}, tmp_path, spread)
    for kind in kinds:
        assert_same(together[kind], alone[kind], kind)
        assert together[kind].is_sharded == (spread.strategy == "fsdp2"), kind


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_checkpoint_is_resumed_by_any_number_of_processes(
    bases: dict[str, Path], alone: dict[str, Trained], tmp_path: Path, strategy: str
) -> None:
    some = {kind: bases[kind] for kind in ("momentum", "lora")}
    for processes, stop_at in ((2, 2), (4, 2)):
        assert run(some, tmp_path, Spread(processes, strategy), stop_at) == dict.fromkeys(some)
    other = ALONE if strategy == "fsdp2" else Spread(2, "fsdp2")
    with pytest.raises(EnvironmentProblem, match=rf"test: its checkpoint at step 4 is .*, and strategy {other.strategy} cannot"):
        run(some, tmp_path, other)
    finished = run(some, tmp_path, Spread(1, strategy))
    for kind in some:
        assert_same(finished[kind], alone[kind], kind)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_after_an_out_of_memory_error_the_next_attempt_has_smaller_passes(
    bases: dict[str, Path], alone: dict[str, Trained], tmp_path: Path, strategy: str
) -> None:
    spread = Spread(2, strategy)
    work: Any = partial(rank_work.train_with_little_memory, base=bases["sft"], work=tmp_path / "sft", spread=spread)

    def attempt() -> Any:
        return run_ranks(work, spread, folder=tmp_path, emit=lambda event: None, stop_requested=lambda: None).value

    with pytest.raises(StageError, match=r"rank 1 was out of memory with 2 rows in a forward pass: CUDA .* 2\.00 GiB") as found:
        attempt()
    assert "Run the same command again: it goes on from the last checkpoint with 1." in str(found.value.hint)
    assert_same(attempt(), alone["sft"], "sft")


def test_equal_numbers_of_processes_give_equal_bytes(bases: dict[str, Path], tmp_path: Path) -> None:
    some = {kind: bases[kind] for kind in ("sft", "dpo")}
    first, second = (run(some, tmp_path / name, Spread(2, "fsdp2")) for name in ("first", "second"))
    for kind in some:
        assert first[kind].curve == second[kind].curve
        assert all(torch.equal(value, second[kind].weights[name]) for name, value in first[kind].weights.items())
