"""Online methods in several processes train what one trains: DDP and FSDP2, whatever they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import online_rank_work
import pytest
import torch
from online_rank_work import KINDS, run_kinds
from safetensors.torch import load_file

from align.runtime.spread import ALONE, Spread
from align.store.artifact import METRICS_NAME

pytestmark = pytest.mark.slow

ALL = tuple(KINDS)
SOME = ("grpo", "ppo", "lora", "distill")
SPREADS = {Spread(2, "ddp"): ALL, Spread(2, "fsdp2"): ALL, Spread(4, "fsdp2"): SOME, Spread(1, "fsdp2"): SOME[:1]}
# Sums in another order. Measured in float32: curves 5e-7 of a number, weights 2.4e-7.
CURVES, WEIGHTS = 1e-5, 2e-6
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


def rows_of(folder: Path, kind: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / kind / "output" / METRICS_NAME).read_text().splitlines()]


def weights_of(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / kind / "output" / "model").glob("*.safetensors")
    return load_file(file)


def assert_same(folder: Path, expected: Path, kind: str) -> None:
    for row, other in zip(rows_of(folder, kind), rows_of(expected, kind), strict=True):
        assert row == pytest.approx(other, rel=CURVES, abs=CURVES), kind
    found, wanted = weights_of(folder, kind), weights_of(expected, kind)
    assert found.keys() == wanted.keys(), kind
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=WEIGHTS, msg=f"{kind}: {name}")
    model = Path(kind) / "output" / "model"
    assert {path.name for path in (folder / model).iterdir()} == {path.name for path in (expected / model).iterdir()}
    assert (folder / model / "config.json").read_bytes() == (expected / model / "config.json").read_bytes()
