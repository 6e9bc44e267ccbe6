"""The first guess of a stage's time, by its operations and steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from one_layer import SHAPE

from align import load_recipe
from align.models.shape import ModelShape, read_shape
from align.pipeline.estimate import lengths as lengths_module
from align.pipeline.estimate.guess import SpeedGuess
from align.pipeline.estimate.lengths import MeasuredRows, row_lengths
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.planned_rows import RowsPlanner, count_rows, most_pairs
from align.pipeline.estimate.speed import (
    FORKED_START_SECONDS,
    START_SECONDS,
    STEP_SECONDS,
    Speed,
    peak_flops,
    stated_speed,
)
from align.pipeline.plan import Plan, make_plan
from align.selection.pair_rule import PairRule
from align.training.needs import SAMPLED_ROWS

H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", 80 << 30, 80 << 30, 1 << 40, has_bfloat16=True)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A10G", 70e12), ("NVIDIA A100-SXM4-40GB", 312e12),
     ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA GeForce RTX 4090", 165e12), ("Tesla T4", None)],
)  # fmt: skip
def test_the_peak_of_a_device_is_found_by_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


SLOW = Speed(flops=1e6, bandwidth=1e6, cache_bytes=1e9, shares_memory=False, number_bytes=4)


def test_nothing_is_stated_of_a_gpu_that_is_not_known_or_has_no_bfloat16() -> None:
    speed = stated_speed(H100)
    assert speed is not None
    assert (speed.flops, speed.bandwidth) == pytest.approx((0.35 * 989e12, 0.6 * 3350e9))
    assert stated_speed(replace(H100, name="Some accelerator")) is None
    assert stated_speed(replace(H100, has_bfloat16=False)) is None


@pytest.fixture
def plan(project: Path, tmp_path: Path) -> Plan:
    return make_plan(load_recipe(project / "recipe.yaml", ("stages.sft.num_epochs=2",)), tmp_path / "runs")


def base_of(plan: Plan) -> ModelShape:
    base = plan.inputs["base"].model
    assert base is not None
    shape = read_shape(base)
    assert shape is not None
    return shape


def test_a_training_takes_the_time_of_its_operations(plan: Plan, project: Path, tmp_path: Path) -> None:
    guesser, stages = (
        SpeedGuess(plan, read_machine(tmp_path), SLOW, MeasuredRows(plan.store)),
        {stage.name: stage for stage in plan.stages},
    )
    shape = base_of(plan)
    lengths = row_lengths(plan.inputs["instructions"], project / "base")
    assert lengths is not None
    tokens = sum(row.total for row in lengths)
    guess = guesser.guess(stages["sft"])
    assert guess is not None
    # Six operations a weight, token and epoch.
    assert guess.seconds == pytest.approx(START_SECONDS + 2 * 6 * tokens * shape.parameters / 1e6)
    assert not guess.is_bound


def test_rows_that_are_yet_to_be_made_count_at_full_length(plan: Plan, project: Path, tmp_path: Path) -> None:
    """12 prompts, 3 candidates each of 8 tokens at most; one pair and one best candidate of each prompt."""
    base = plan.inputs["base"].model
    assert base is not None
    planner = RowsPlanner(plan, MeasuredRows(plan.store))
    prompts, sampled, pairs, best = (planner.rows(name, base) for name in ("prompts", "sampled", "pairs", "best"))
    assert prompts is not None
    assert sampled is not None
    assert pairs is not None
    assert best is not None
    assert (sampled.rows, sampled.prompt, sampled.completion, sampled.is_bound) == (36, prompts.prompt, 8, True)
    assert (pairs.rows, pairs.completion, best.rows, best.completion) == (12, 16, 12, 8)
    assert planner.rows("nothing", base) is None
    shape, guesser = base_of(plan), SpeedGuess(plan, read_machine(tmp_path), SLOW, MeasuredRows(plan.store))
    found = {stage.name: guesser.guess(stage) for stage in plan.stages}
    guesses = {name: guess for name, guess in found.items() if guess is not None}
    assert guesses.keys() == found.keys()
    # Six operations a weight and token in each of three epochs, and two for the reference.
    dpo = FORKED_START_SECONDS + pairs.tokens * shape.parameters * (3 * 6 + 2) / 1e6
    assert guesses["dpo"].seconds == pytest.approx(dpo)
    assert guesses["dpo"].is_bound
    scored = FORKED_START_SECONDS + 2 * sampled.tokens * shape.parameters / 1e6
    assert guesses["scored"].seconds == pytest.approx(scored)
    assert guesses["sampled"].seconds == pytest.approx(
        FORKED_START_SECONDS + SLOW.sampling_seconds(shape, "transformers", prompts=12, prompt=prompts.prompt, each=3, new=8)
    )
    # Three models answer, against one.
    assert guesses["compare"].seconds > guesses["sampled"].seconds
    # Policy and value model learn twice from 24 episodes.
    learned = 24 * (prompts.prompt + 8) * 2 * 6 * 2 * shape.parameters / 1e6
    assert learned < guesses["ppo"].seconds < 3 * learned


def test_each_side_of_a_pair_is_a_row_of_kto_beside_another_completion(project: Path, tmp_path: Path) -> None:
    """A pair of completions gives two rows of the prompt and two completions each."""
    stage = "stages.kto={stage: kto, model: base, data: comparisons, max_tokens: 128}"
    plan = make_plan(load_recipe(project / "recipe.yaml", overrides=[stage]), tmp_path / "runs")
    lengths = row_lengths(plan.inputs["comparisons"], project / "base")
    assert lengths is not None
    tokens = sum(2 * row.prompt + 2 * sum(row.completions) for row in lengths)
    guess = SpeedGuess(plan, read_machine(tmp_path), SLOW, MeasuredRows(plan.store)).guess(
        next(one for one in plan.stages if one.name == "kto")
    )
    assert guess is not None
    expected = FORKED_START_SECONDS + tokens * base_of(plan).parameters * (6 + 2) / 1e6
    assert guess.seconds == pytest.approx(expected)


def test_a_step_of_sampling_is_bound_by_memory_or_by_operations(project: Path) -> None:
    shape = replace(SHAPE, num_layers=2)
    few = Speed(flops=1e12, bandwidth=1e3, cache_bytes=1e9, shares_memory=False, number_bytes=4)
    # 172 weights of 4 bytes, and keys and values of 2 layers and 2 numbers for 10 tokens and half of 4 new ones.
    read = 4 * (172 + 2 * 2 * 2 * (10 + 2)) / 1e3
    assert few.sampling_seconds(shape, "vllm", prompts=1, prompt=10, each=1, new=4) == pytest.approx(
        4 * (STEP_SECONDS["vllm"] + read), rel=1e-6
    )
    many = replace(few, flops=1e3, bandwidth=1e12)
    computed = 2 * 172 * 64 / 1e3
    # 65 completions are two batches with transformers.
    seconds = many.sampling_seconds(shape, "transformers", prompts=65, prompt=0, each=1, new=1)
    assert seconds == pytest.approx(2 * (STEP_SECONDS["transformers"] + computed))
    # vLLM computes a prompt once, and takes no more completions at once than its cache holds.
    once = replace(many, cache_bytes=2 * 4 * 2 * 2 * 2 * 11)
    seconds = once.sampling_seconds(shape, "vllm", prompts=1, prompt=10, each=4, new=1)
    assert seconds == pytest.approx(2 * (STEP_SECONDS["vllm"] + 2 * 172 * 2 / 1e3) + 2 * 172 * 10 / 1e3)


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [({}, 1), ({"policy": "best_vs_each"}, 3), ({"policy": "top_k_bottom_k"}, 4), ({"policy": "top_k_bottom_k", "k": 3}, 6)],
)
def test_the_most_pairs_of_four_candidates(settings: dict[str, Any], pairs: int) -> None:
    assert most_pairs(PairRule(scorer="rm", **settings), 4) == pairs


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
    limited = replace(source, files=(replace(source.files[0], max_rows=7), replace(source.files[0], max_rows=7)))
    assert count_rows(replace(data, source=limited, artifact=None)) == 7
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
