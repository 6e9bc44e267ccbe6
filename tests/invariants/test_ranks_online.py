"""Online methods in several processes train what one trains: DDP and FSDP2, whatever they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import online_rank_work
import pytest
from online_rank_work import CURVES, KINDS, STOP_AT, assert_equal, assert_same, rows_of, run_kinds

from align.errors import StageError
from align.runtime.spread import ALONE, Spread

pytestmark = pytest.mark.slow

ALL = tuple(KINDS)
SOME = ("ppo", "lora")
SPREADS = {
    Spread(2, "ddp"): ALL,
    Spread(2, "fsdp2"): ALL,
    Spread(4, "fsdp2"): SOME,
    Spread(1, "fsdp2"): SOME[:1],
    Spread(2, "ddp", samplers=2): ("ahead", "distill"),
    Spread(2, "fsdp2", samplers=2): ("everything", "lora", "ahead"),
}
CLOCKS = {"seconds", "sync_share", "episodes_per_second"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    online_rank_work.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_kinds(inputs, folder, ALONE, ALL)


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_curves_and_weights_are_those_of_one_process(inputs: Path, alone: Any, tmp_path: Path, spread: Spread) -> None:
    kinds = SPREADS[spread]
    outcomes = run_kinds(inputs, tmp_path, spread, kinds)
    for kind in kinds:
        assert_same(tmp_path, alone[0], kind)
        found, expected = (numbers_of(each[kind].metrics) for each in (outcomes, alone[1]))
        assert found == pytest.approx(expected, rel=CURVES, abs=CURVES), kind


def numbers_of(metrics: dict[str, Any]) -> dict[str, float]:
    """Those that are no clocks."""
    return {name: value for name, value in metrics.items() if name not in CLOCKS and isinstance(value, int | float)}


@pytest.mark.parametrize(
    ("first", "then"), [(Spread(2, "fsdp2"), ALONE), (ALONE, Spread(2, "ddp")), (Spread(2, "ddp"), Spread(2, "fsdp2"))]
)
def test_a_checkpoint_is_resumed_by_any_number_of_processes_and_any_strategy(
    inputs: Path, alone: Any, tmp_path: Path, first: Spread, then: Spread
) -> None:
    """Between two updates from the second rollout batch."""
    kinds = ("ppo", "lora")
    assert run_kinds(inputs, tmp_path, first, kinds, stop_at=STOP_AT) == dict.fromkeys(kinds)
    for kind in kinds:
        (newest, *_) = sorted((tmp_path / kind).glob("output/work/checkpoints/checkpoint-*"), reverse=True)
        assert json.loads((newest / "phase.json").read_bytes())["updates"], kind
    run_kinds(inputs, tmp_path, then, kinds)
    for kind in kinds:
        assert_same(tmp_path, alone[0], kind)


def test_equal_numbers_of_processes_give_equal_bytes_also_after_a_stop(inputs: Path, tmp_path: Path) -> None:
    kinds, spread = ("ppo", "distill", "ahead"), Spread(2, "fsdp2", samplers=2)
    run_kinds(inputs, tmp_path / "once", spread, kinds)
    run_kinds(inputs, tmp_path / "stopped", spread, kinds, stop_at=STOP_AT)
    run_kinds(inputs, tmp_path / "stopped", spread, kinds)
    for kind in kinds:
        assert_equal(tmp_path / "stopped", tmp_path / "once", kind)


def test_the_kl_limit_stops_all_and_keeps_the_policy_from_before(inputs: Path, alone: Any, tmp_path: Path) -> None:
    limit = max(row["objective/kl"] for row in rows_of(alone[0], "rloo")) / 2
    found, expected = (
        run_kinds(inputs, tmp_path / str(spread), spread, ("rloo",), kl_limit=limit)["rloo"]
        for spread in (Spread(2, "fsdp2"), ALONE)
    )
    assert found.metrics["stopped_by_kl_limit"] and expected.metrics["stopped_by_kl_limit"]
    assert_same(tmp_path / str(Spread(2, "fsdp2")), tmp_path / str(ALONE), "rloo")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_gradient_of_one_process_that_is_no_number_ends_all_before_the_update(
    inputs: Path, tmp_path: Path, strategy: str
) -> None:
    with pytest.raises(StageError, match="The gradient norm of the policy model is nan; this update was not made"):
        run_kinds(inputs, tmp_path, Spread(2, strategy), ("grpo",), broken=1)


def test_vllm_samples_beside_the_ranks_with_their_weights(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    (outcome,) = run_kinds(inputs, tmp_path, Spread(2, "fsdp2"), ("grpo",), engine="vllm").values()
    assert outcome.versions.keys() == {"vllm"}
    rows = rows_of(tmp_path, "grpo")
    assert len(rows) == 2 and rows[0]["policy/grad_norm"] > 0
    assert all(row["rollout/sampler_gap_max"] < 1e-4 for row in rows)
