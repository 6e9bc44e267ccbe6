"""The first guess of a training's time, by its operations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from align import load_recipe
from align.pipeline.estimate import lengths as lengths_module
from align.pipeline.estimate import speed
from align.pipeline.estimate.lengths import MeasuredRows, row_lengths
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.shape import read_shape
from align.pipeline.estimate.speed import START_SECONDS, SpeedGuess, count_rows, peak_flops, stated_flops
from align.pipeline.plan import make_plan
from align.training.needs import SAMPLED_ROWS

H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", 80 << 30, 80 << 30, 1 << 40, has_bfloat16=True)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A10G", 70e12), ("NVIDIA A100-SXM4-40GB", 312e12),
     ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA GeForce RTX 4090", 165e12), ("Tesla T4", None)],
)  # fmt: skip
def test_the_peak_of_a_device_is_found_by_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_nothing_is_stated_of_a_gpu_that_is_not_known_or_has_no_bfloat16() -> None:
    assert stated_flops(H100) == pytest.approx(0.35 * 989e12)
    assert stated_flops(replace(H100, name="Some accelerator")) is None
    assert stated_flops(replace(H100, has_bfloat16=False)) is None


def test_a_training_takes_the_time_of_its_operations(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "stated_flops", lambda machine: 1e6)
    plan = make_plan(load_recipe(project / "recipe.yaml", ("stages.sft.num_epochs=2",)), tmp_path / "runs")
    guess = SpeedGuess(plan, read_machine(tmp_path))
    stages = {stage.name: stage for stage in plan.stages}
    base = plan.inputs["base"].model
    assert base is not None
    shape = read_shape(base)
    config = stages["sft"].node.config
    lengths = row_lengths(plan.inputs[config.data], base.path)  # type: ignore[attr-defined]
    assert shape is not None
    assert lengths is not None
    tokens = sum(row.total for row in lengths)
    # Six operations a weight, token and epoch.
    assert guess.seconds(stages["sft"]) == pytest.approx(START_SECONDS + 2 * 6 * tokens * shape.parameters / 1e6)
    # The pairs are yet to be made, and the time of sampling does not follow from operations.
    assert guess.seconds(stages["dpo"]) is None
    assert guess.seconds(stages["sampled"]) is None


def test_rows_are_counted_by_the_size_of_the_file(project: Path, tmp_path: Path) -> None:
    recipe = load_recipe(project / "recipe.yaml")
    plan = make_plan(recipe, tmp_path / "runs")
    data = next(value for value in plan.inputs.values() if value.source is not None)
    assert data.source is not None
    path = tmp_path / "many.jsonl"
    rows = 40 * SAMPLED_ROWS
    path.write_text("".join(json.dumps({"text": f"행 {number:05d}"}, ensure_ascii=False) + "\n" for number in range(rows)))
    source = replace(data.source, files=(replace(data.source.files[0], origin=path),))
    assert count_rows(replace(data, source=source, artifact=None)) == pytest.approx(rows, rel=0.05)
    packed = path.rename(tmp_path / "many.jsonl.gz")
    source = replace(data.source, files=(replace(data.source.files[0], origin=packed),))
    assert count_rows(replace(data, source=source, artifact=None)) is None


def test_rows_are_measured_once_for_all_plans_of_a_store(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(load_recipe(project / "recipe.yaml"), tmp_path / "runs")
    data = plan.inputs[plan.stages[0].node.config.data]  # type: ignore[attr-defined]
    first = MeasuredRows(plan.store)
    found = first.lengths(data, project / "base")
    assert found
    first.save()
    monkeypatch.setattr(lengths_module, "row_lengths", lambda *_: pytest.fail("measured again"))
    assert MeasuredRows(plan.store).lengths(data, project / "base") == found
    # Rows that cannot be read are no error here.
    assert MeasuredRows(plan.store).lengths(data, project / "nothing") is None
