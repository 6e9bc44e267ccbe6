"""The memory of each process, where several share a training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe
from align.config.machine_file import read_machine_settings
from align.models.sizes import ZERO3_NUMBERS_AT_ONCE
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import PlanEstimate, estimate_plan
from align.pipeline.plan import make_plan
from align.runtime.context import MemoryChoice
from align.runtime.spread import Spread

GIB = 1 << 30
CPU = Machine("cpu", "memory", 8 * GIB, 8 * GIB, 50 * GIB, has_bfloat16=False)
GPU = Machine("cuda", "NVIDIA L4", 24 * GIB, 23 * GIB, 50 * GIB, has_bfloat16=True, num_gpus=1)
EIGHT = replace(GPU, num_gpus=8)


class TestMemory:
    """Of one process."""

    def estimate(self, project: Path, on: Machine, machine: dict[str, Any], *overrides: str) -> PlanEstimate:
        file = project / "machine.yaml"
        file.write_text(json.dumps(machine))
        settings = read_machine_settings(file, project, {})
        return estimate_plan(make_plan(load_recipe(project, overrides), project / "none", machine_file=settings), on)

    def of_sft(self, project: Path, on: Machine, processes: int, strategy: str, *overrides: str) -> Any:
        training = {"processes": processes, "strategy": strategy} if processes > 1 else {}
        found = self.estimate(project, on, {"training": training}, *overrides)
        (stage,) = [stage for stage in found.stages if stage.name == "sft"]
        return stage.of_recipe

    def test_ddp_has_a_copy_and_buckets_and_a_part_of_the_rows(self, project: Path) -> None:
        batch = "stages.sft.batch_size=8"
        one, two = (self.of_sft(project, CPU, count, "ddp", batch).memory for count in (1, 2))
        assert (two.weights, two.gradients, two.optimizer) == (one.weights, one.gradients, one.optimizer)
        assert two.exchange == one.gradients
        assert two.activations == self.of_sft(project, CPU, 1, "", "stages.sft.batch_size=4").memory.activations

    def test_fsdp2_has_a_part_of_each_and_whole_groups_of_layers(self, project: Path) -> None:
        batch = "stages.sft.batch_size=8"
        one, four = (self.of_sft(project, CPU, count, "fsdp2", batch).memory for count in (1, 4))
        assert [four.weights, four.gradients, four.optimizer] == [
            size // 4 for size in (one.weights, one.gradients, one.optimizer)
        ]
        assert 0 < four.exchange <= one.weights

    def test_what_fsdp2_gathers_does_not_grow_with_layers(self) -> None:
        from align.models.shape import LinearLayer, ModelShape
        from align.pipeline.estimate.loaded_model import LoadedModel

        def exchange(layers: int, strategy: str) -> int:
            linear = tuple(LinearLayer(f"layers.{number}.up", 64, 64) for number in range(layers))
            backbone = 100 * 64 + 64 * 64 * layers
            shape = ModelShape(64, 64, layers, 4, 4, 16, 100, 512, True, "silu", True, linear, backbone, 0, 100 * 64)
            return LoadedModel(shape).exchange_bytes(Spread(4, strategy))

        assert exchange(10, "fsdp2") == exchange(100, "fsdp2") == 4 * (100 * 64 + 2 * 64 * 64)
        assert exchange(10, "zero3") - exchange(10, "fsdp2") == 4 * (ZERO3_NUMBERS_AT_ONCE + 100 * 64 + 10 * 64 * 64)
        assert exchange(100, "ddp") == 4 * (100 * 64 + 100 * 64 * 64)
        assert exchange(10, "single") == 0

    def test_fsdp2_divides_a_model_by_the_processes_of_all_nodes(self, project: Path) -> None:
        training = {"processes": 2, "nodes": 2, "strategy": "fsdp2"}
        found = self.estimate(project, CPU, {"training": training}, "stages.sft.batch_size=8").stages[0].of_recipe
        four = self.of_sft(project, CPU, 4, "fsdp2", "stages.sft.batch_size=8")
        assert found is not None
        assert found.memory == four.memory
        assert CPU.free_for(found.spread) == 2 * CPU.free_for(four.spread)

    def test_processes_share_the_memory_of_a_computer_but_have_a_gpu_each(self) -> None:
        assert CPU.free_for(Spread(4, "ddp")) == 2 * GIB
        assert EIGHT.free_for(Spread(4, "ddp")) == 23 * GIB

    def test_micro_batches_are_parts_of_the_batch_of_all(self, project: Path) -> None:
        batch = "stages.sft.batch_size=12"
        assert self.of_sft(project, GPU, 4, "ddp", batch).choice == MemoryChoice()
        small = replace(GPU, free_bytes=GIB // 8, num_gpus=4)
        off = "stages.sft.gradient_checkpointing=false"
        assert self.of_sft(project, small, 4, "ddp", batch, off).choice == MemoryChoice(1)
        # Shares of 5 processes have 3 rows at most; 2 is the largest divisor of 12 below that.
        two = self.of_sft(project, GPU, 5, "ddp", batch, off, "stages.sft.micro_batch_size=2").memory.peak
        assert self.of_sft(project, replace(small, free_bytes=two), 5, "ddp", batch, off).choice == MemoryChoice(2)

    def test_online_methods_divide_their_other_models_too(self, project: Path) -> None:
        def of_ppo(processes: int, strategy: str, *overrides: str) -> Any:
            training = {"processes": processes, "strategy": strategy} if processes > 1 else {}
            settings = ("stages.ppo.mini_batch_size=8", *overrides)
            found = self.estimate(project, CPU, {"training": training}, *settings)
            return next(stage for stage in found.stages if stage.name == "ppo").of_recipe.memory  # type: ignore[union-attr]

        one, copies, parts = of_ppo(1, ""), of_ppo(4, "ddp"), of_ppo(4, "fsdp2")
        assert (copies.weights, copies.other_models) == (one.weights, one.other_models)
        assert 0 < copies.exchange <= copies.gradients
        assert copies.activations == of_ppo(1, "", "stages.ppo.mini_batch_size=2").activations
        assert [parts.weights, parts.gradients, parts.optimizer] == [
            size // 4 for size in (one.weights, one.gradients, one.optimizer)
        ]
        # Three quarters of the reference are elsewhere; engine and reward model are not divided.
        reference = one.weights // 2
        assert parts.other_models == pytest.approx(one.other_models - 3 * reference / 4, rel=0.02)

    def test_auto_divides_what_does_not_fit(self, project: Path) -> None:
        settings = [f"stages.sft.{key}" for key in ("gradient_checkpointing=false", "micro_batch_size=1", "batch_size=8")]
        whole = self.of_sft(project, EIGHT, 8, "ddp", *settings)
        for room, expected in ((whole.memory.peak, "ddp"), (whole.memory.peak - 1, "fsdp2")):
            tight = replace(EIGHT, free_bytes=room)
            (stage, *_) = self.estimate(project, tight, {}, *settings).stages
            assert stage.spread.strategy == expected
            assert stage.of_recipe is not None
            assert stage.of_recipe.spread == stage.spread
