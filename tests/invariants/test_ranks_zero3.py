"""Several processes of DeepSpeed's ZeRO-3 train what one process trains."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rank_work
from rank_work import Trained, assert_same, make_bases, run

from align.errors import EnvironmentProblem, StageError
from align.runtime.ranks import run_ranks
from align.runtime.spread import ALONE, Spread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra zero3)"),
]

KINDS = ("sft", "tied", "recompute", "momentum", "lora", "dpo", "simpo", "reward_model", "kto")
TWO = Spread(2, "zero3")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bases(tmp_path_factory.mktemp("bases"), KINDS)


@pytest.fixture(scope="module")
def alone(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return run(bases, tmp_path_factory.mktemp("alone"), ALONE)


@pytest.mark.parametrize(("spread", "kinds"), [(TWO, KINDS), (Spread(3, "zero3"), ("sft", "kto"))], ids=str)
def test_losses_gradient_norms_and_weights_are_those_of_one_process(
    bases: dict[str, Path], alone: dict[str, Trained], tmp_path: Path, spread: Spread, kinds: tuple[str, ...]
) -> None:
    together = run({kind: bases[kind] for kind in kinds}, tmp_path, spread)
    for kind in kinds:
        assert_same(together[kind], alone[kind], kind)
        assert together[kind].is_sharded, kind


def test_a_checkpoint_is_resumed_by_the_same_number_of_processes(
    bases: dict[str, Path], alone: dict[str, Trained], tmp_path: Path
) -> None:
    some = {kind: bases[kind] for kind in ("momentum", "lora")}
    assert run(some, tmp_path, TWO, stop_at=2) == dict.fromkeys(some)
    with pytest.raises(EnvironmentProblem, match=r"its checkpoint at step 2 has the parts of 2 processes, and zero3 .* with 3"):
        run(some, tmp_path, Spread(3, "zero3"))
    for other in (ALONE, Spread(2, "fsdp2")):
        with pytest.raises(EnvironmentProblem, match=rf"step 2 is in parts, and strategy {other.strategy} cannot") as found:
            run(some, tmp_path, other)
        assert "Go on with training.strategy: zero3 in the machine file (2 processes)" in str(found.value.hint)
    finished = run(some, tmp_path, TWO)
    for kind in some:
        assert_same(finished[kind], alone[kind], kind)


def test_a_gradient_that_is_not_finite_ends_the_training_before_the_step(bases: dict[str, Path], tmp_path: Path) -> None:
    work: Any = partial(rank_work.train_with_infinite_gradient, base=bases["sft"], work=tmp_path / "sft", spread=TWO)
    with pytest.raises(StageError, match="A gradient is not finite at step 1 of 6; the weights were not changed by it"):
        run_ranks(work, TWO, folder=tmp_path, emit=lambda event: None, stop_requested=lambda: None)
