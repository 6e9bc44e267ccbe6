"""How a plan spreads its stages over devices: what decides, what is refused, and what is shown."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align import load_recipe
from align.config.machine import SamplingEngines, TrainingProcesses
from align.config.machine_file import MachineFile, read_machine_settings
from align.config.peft import Lora
from align.errors import RecipeError
from align.models.folder import ModelFolder
from align.pipeline.checks.spread import check_spread, refuse_in_process
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.estimate.spread import division_refusal, spread_of
from align.pipeline.estimate.spread_view import spread_lines, stage_spreads
from align.pipeline.plan import Plan, make_plan
from align.runtime.spread import ALONE, Spread
from align.stages import dpo, ppo

GIB = 1 << 30
CPU = Machine("cpu", "memory", 8 * GIB, 8 * GIB, 50 * GIB, has_bfloat16=False)
GPU = Machine("cuda", "NVIDIA L4", 24 * GIB, 23 * GIB, 50 * GIB, has_bfloat16=True, num_gpus=1)
EIGHT = replace(GPU, num_gpus=8)
QLORA = "stages.dpo.peft={method: qlora}"


def plan_of(project: Path, machine: dict[str, Any], *overrides: str, text: str = "") -> Plan:
    file = project / "machine.yaml"
    file.write_text(text or json.dumps(machine))
    return make_plan(load_recipe(project, overrides), project / "none", machine_file=read_machine_settings(file, project, {}))


def spreads(project: Path, on: Machine, machine: dict[str, Any], *overrides: str) -> dict[str, str]:
    plan = plan_of(project, machine, *overrides)
    return {found.name: found.text for found in stage_spreads(plan, estimate_plan(plan, on))}


def chosen(settings: dict[str, Any], machine: Machine, *, fits: bool = True, refusal: str | None = None) -> Spread:
    config = dpo.Config.model_construct(batch_size=6)
    given = TrainingProcesses(**settings)
    return spread_of("dpo", config, given, machine, refusal=refusal, fits=lambda spread: fits)


@pytest.mark.parametrize(
    ("settings", "machine", "fits", "expected"),
    [
        ({}, CPU, False, ALONE),
        ({}, GPU, False, ALONE),
        ({}, replace(GPU, num_gpus=4), True, Spread(4, "ddp")),
        ({}, replace(GPU, num_gpus=4), False, Spread(4, "fsdp2")),
        ({}, EIGHT, True, Spread(6, "ddp")),  # as many as an optimizer batch has rows
        ({"strategy": "single"}, EIGHT, False, ALONE),
        ({"processes": 2, "hang_minutes": 5}, CPU, True, Spread(2, "ddp", 5.0)),
        ({"processes": 2, "strategy": "ddp"}, EIGHT, False, Spread(2, "ddp")),
        ({"strategy": "fsdp2"}, CPU, True, Spread(1, "fsdp2")),
        ({"nodes": 2}, CPU, True, Spread(2, "ddp", nodes=2)),
        ({"nodes": 2, "processes": 2}, EIGHT, False, Spread(4, "fsdp2", nodes=2)),
        ({"nodes": 2}, EIGHT, True, Spread(6, "ddp", nodes=2)),  # 3 on each
        ({"nodes": 8}, EIGHT, True, Spread(6, "ddp", nodes=6)),
        ({"strategy": "zero3"}, EIGHT, True, Spread(6, "zero3")),
    ],
)
def test_what_decides_how_a_training_is_spread(settings: dict[str, Any], machine: Machine, fits: bool, expected: Spread) -> None:
    assert chosen(settings, machine, fits=fits) == expected


@pytest.mark.parametrize(
    ("engines", "machine", "expected"), [("auto", EIGHT, 4), ("auto", CPU, 1), (3, EIGHT, 3), (8, CPU, 4), (1, EIGHT, 1)]
)
def test_online_methods_have_an_engine_in_each_process_with_a_gpu(engines: Any, machine: Machine, expected: int) -> None:
    def of(module: Any, **batch: int) -> Spread:
        config, sampling = module.Config.model_construct(**batch), SamplingEngines(engines=engines)
        given = TrainingProcesses(processes=4)
        return spread_of("ppo", config, given, machine, refusal=None, fits=lambda spread: True, sampling=sampling)

    assert of(ppo, mini_batch_size=6) == Spread(4, "ddp", samplers=expected)
    assert of(dpo, batch_size=6) == Spread(4, "ddp")


def test_auto_leaves_a_model_whole_that_cannot_be_divided() -> None:
    assert chosen({"processes": 2}, CPU, fits=False, refusal="in 4 bits") == Spread(2, "ddp")


def test_a_model_in_4_bits_or_with_an_encoder_cannot_be_divided(project: Path) -> None:
    needs = dict(load_recipe(project, [QLORA]).stages)["dpo"].config.training_needs()  # type: ignore[attr-defined]
    assert "qlora" in str(division_refusal("fsdp2", "dpo", needs.peft, None))
    assert division_refusal("fsdp2", "dpo", None, ModelFolder(project / "base")) is None
    new_tokens: Any = SimpleNamespace(encoder_decoder=None, new_tokens=("<call>",), trained_token_ids={})
    assert "rows of new tokens" in str(division_refusal("zero3", "dpo", Lora(method="lora"), new_tokens))
    assert division_refusal("zero3", "dpo", None, new_tokens) is None
    config = json.loads((project / "base" / "config.json").read_text())
    (project / "base" / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    assert "encoder–decoder" in str(division_refusal("fsdp2", "dpo", None, ModelFolder(project / "base")))


def test_the_stages_of_a_plan(project: Path) -> None:
    small = ("stages.dpo.batch_size=2", "stages.ppo.mini_batch_size=3")
    found = spreads(project, EIGHT, {"sampling": {"tensor_parallel": 2}}, *small)
    assert found["reward"] == "4 processes, ddp"  # as many as rows in its batch
    assert found["dpo"] == "2 processes, ddp"
    assert found["ppo"] == "3 processes, ddp, 3 engines"  # as many as completions in a mini-batch
    assert found["sampled"] == "4 engines of 2 GPUs"
    assert found["scored"] == "8 scorers"
    assert "pairs" not in found


def test_the_number_of_engines(project: Path) -> None:
    def engines(on: Machine, sampling: dict[str, Any], *overrides: str) -> str:
        return spreads(project, on, {"sampling": sampling}, *overrides)["sampled"]

    two = "stages.sampled.num_workers=2"
    assert engines(CPU, {}) == "1 engine"
    assert engines(CPU, {}, two) == "2 engines"
    assert engines(CPU, {"engines": 3}, two) == "3 engines"
    assert engines(EIGHT, {}) == "8 engines"
    assert engines(EIGHT, {}, two) == "2 engines"
    assert engines(EIGHT, {"tensor_parallel": 8}, two) == "1 engine of 8 GPUs"
    assert engines(GPU, {"pool": "ray"}, "stages.sampled.num_workers=9") == "9 engines on Ray"


def test_nothing_is_said_where_every_stage_is_on_one_device(project: Path) -> None:
    plan = plan_of(project, {})
    found = stage_spreads(plan, estimate_plan(plan, CPU))
    assert {spread.text for spread in found} == {"1 process", "1 engine", "1 scorer"}
    assert spread_lines(found, "") == []


def test_a_plan_says_how_stages_are_spread(project: Path, plan: Any) -> None:
    (project / "machine.yaml").write_text("training: {processes: 2, strategy: fsdp2}\nsampling: {engines: 2}\n")
    lines = plan().out.splitlines()
    start = lines.index("Devices, by machine.yaml:")
    assert lines[start + 1] == "  2 processes, fsdp2: sft, reward, rs, orpo, dpo"
    assert "  2 processes, fsdp2, 2 engines: ppo" in lines
    assert "Memory is that of each process, where several share a training." in lines
    said = {one["stage"]: one for one in json.loads(plan(options=("--json",)).out)["spread"]}
    assert (said["sft"]["processes"], said["sft"]["strategy"]) == (2, "fsdp2")
    assert (said["sampled"]["engines"], said["sampled"]["pool"]) == (2, "processes")
    (project / "machine.yaml").write_text("training: {processes: 2, nodes: 2, strategy: fsdp2}\n")
    lines = plan().out.splitlines()
    # A batch of two or three rows is for two processes.
    assert "  2 nodes × 1 process, fsdp2: sft, rs" in lines
    assert "  2 nodes × 2 processes, fsdp2: reward, orpo, ppo, dpo" in lines


class TestDevicesThatOnlySample:
    """Of online methods, by `sampling: {devices: …}`."""

    def of_ppo(self, project: Path, on: Machine, devices: Any, *overrides: str, **training: Any) -> Any:
        machine = {"sampling": {"devices": devices} if devices else {}, "training": training}
        found = estimate_plan(plan_of(project, machine, "stages.ppo.mini_batch_size=16", *overrides), on)
        return next(stage for stage in found.stages if stage.name == "ppo")

    def test_the_others_train(self, project: Path) -> None:
        both = "2 engines on GPUs 6, 7"
        assert str(self.of_ppo(project, EIGHT, [6, 7]).spread) == f"6 processes, ddp; {both}"
        assert str(self.of_ppo(project, EIGHT, [6, 7], processes=8).spread) == f"6 processes, ddp; {both}"
        assert str(self.of_ppo(project, EIGHT, [6, 7], processes=4, strategy="fsdp2").spread) == f"4 processes, fsdp2; {both}"
        assert str(self.of_ppo(project, replace(GPU, num_gpus=2), [0]).spread) == "1 process; 1 engine on GPU 0"
        assert str(self.of_ppo(project, CPU, "cpu").spread) == "1 process; 1 engine on the CPU"

    def test_a_plan_shows_them_and_other_stages_have_all_gpus(self, project: Path) -> None:
        two = {"sampling": {"devices": [4, 5, 6, 7], "tensor_parallel": 2}}
        plan = plan_of(project, two, "stages.sft.batch_size=8", "stages.ppo.mini_batch_size=8")
        found = stage_spreads(plan, estimate_plan(plan, EIGHT))
        assert {"  8 processes, ddp: sft", "  4 processes, ddp; 2 engines of 2 GPUs on GPUs 4, 5, 6, 7: ppo"} <= set(
            spread_lines(found, "machine.yaml")
        )
        (ppo,) = [one.to_json() for one in found if one.name == "ppo"]
        assert (ppo["processes"], ppo["devices"], ppo["tensor_parallel"]) == (4, [4, 5, 6, 7], 2)

    def test_the_engine_is_not_in_the_memory_of_what_trains(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("align.pipeline.estimate.memory.resolve_engine", lambda name: "vllm")
        on, ahead = replace(GPU, num_gpus=2), "stages.ppo.rollouts_ahead=1"
        beside = self.of_ppo(project, on, None, ahead, strategy="single").of_recipe.memory
        apart = self.of_ppo(project, on, [1], ahead).of_recipe.memory
        assert beside.other_models - apart.other_models == round(0.3 * GPU.total_bytes)
        assert beside.peak - apart.peak >= 0.3 * GPU.total_bytes * 0.99
        # A computer has one memory.
        assert self.of_ppo(project, CPU, "cpu").of_recipe.memory == self.of_ppo(project, CPU, None).of_recipe.memory


class TestRefusals:
    def said(self, project: Path, on: Machine, text: str, *overrides: str) -> list[str]:
        found = check_spread(plan_of(project, {}, *overrides, text=text), on)
        return [finding.text.replace(f"{project}/", "") for finding in found]

    def test_more_processes_than_gpus(self, project: Path) -> None:
        text = "training: {processes: 8}"
        assert self.said(project, GPU, text) == ["machine.yaml:1:23: training.processes: 8, but 1 GPU is visible"]
        assert self.said(project, CPU, text) == []
        assert self.said(project, EIGHT, text) == []

    def test_fsdp2_of_a_model_that_cannot_be_divided(self, project: Path) -> None:
        (line,) = self.said(project, EIGHT, "training: {strategy: fsdp2}", QLORA)
        assert line == "machine.yaml:1:22: training.strategy: dpo: fsdp2 does not divide weights in 4 bits (qlora)"
        (line,) = self.said(project, EIGHT, "training: {strategy: fsdp2}", "stages.ppo.optimizer=adamw_8bit")
        assert line.endswith("ppo: fsdp2 does not divide what optimizer adamw_8bit keeps; adamw's it does")
        assert self.said(project, EIGHT, "training: {strategy: ddp}", QLORA) == []

    def test_what_zero3_does_not_train(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        installed: dict[str, Any] = {"deepspeed": None}
        monkeypatch.setattr("importlib.util.find_spec", lambda name: installed[name] if name in installed else find(name))
        missing, online = self.said(project, EIGHT, "training: {strategy: zero3}")
        assert missing == "machine.yaml:1:22: training.strategy: zero3, but DeepSpeed is not installed in this environment"
        assert online == "machine.yaml:1:22: training.strategy: ppo: zero3 does not train ppo; ddp and fsdp2 do"
        assert self.said(project, EIGHT, "training: {strategy: auto}") == []
        installed["deepspeed"] = find("json")
        for override, reason in (
            (QLORA, "does not divide weights in 4 bits (qlora)"),
            ("stages.dpo.peft={method: prompt_tuning}", "does not divide virtual tokens (prompt_tuning)"),
            ("stages.dpo.optimizer=adafactor", "does not divide what optimizer adafactor keeps; adamw's it does"),
        ):
            dpo = next(line for line in self.said(project, EIGHT, "training: {strategy: zero3}", override) if " dpo: " in line)
            assert dpo.endswith(f"dpo: zero3 {reason}")

    def test_auto_is_possible_where_a_strategy_is_not(self, project: Path) -> None:
        assert self.said(project, EIGHT, "training: {strategy: auto}", QLORA) == []

    @pytest.mark.parametrize(
        ("machine", "sampling", "said"),
        [
            (CPU, "tensor_parallel: 2", "tensor_parallel: an engine of 2 GPUs, but there is none here that stages can use"),
            (GPU, "tensor_parallel: 2", "tensor_parallel: an engine of 2 GPUs, but 1 GPU is visible"),
            (EIGHT, "engines: 5, tensor_parallel: 2", "engines: 5 engines of 2 GPUs need 10 GPUs, but 8 GPUs are visible"),
            (EIGHT, "engines: 9", "engines: 9 engines need 9 GPUs, but 8 GPUs are visible"),
            (EIGHT, "tensor_parallel: 3", "3 GPUs cannot share the 4 attention heads of"),
        ],
    )
    def test_engines_that_there_are_no_gpus_for(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, sampling: str, said: str
    ) -> None:
        monkeypatch.setattr("align.pipeline.checks.spread.resolve_engine", lambda name: "vllm")
        config = project / "base" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": 4}))
        assert any(said in line for line in self.said(project, machine, f"sampling: {{{sampling}}}"))
        assert self.said(project, machine, f"sampling: {{{sampling}, pool: ray}}") == [] or "heads" in said

    @pytest.mark.parametrize(
        ("machine", "sampling", "said"),
        [
            (CPU, "[1]", "[1], but there is no GPU here that stages can use"),
            (EIGHT, "[7, 8]", "there is no GPU 8: 8 GPUs are visible, numbered from 0"),
            (replace(GPU, num_gpus=2), "[1, 0]", "[1, 0] are all the GPUs that are visible, which leaves none to train on"),
            (EIGHT, "cpu", "cpu, but 8 GPUs are visible"),
        ],
    )
    def test_devices_that_cannot_only_sample(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, sampling: str, said: str
    ) -> None:
        monkeypatch.setattr("align.pipeline.checks.spread.resolve_engine", lambda name: "vllm")
        assert self.said(project, machine, f"sampling: {{devices: {sampling}}}") == [
            f"machine.yaml:1:21: sampling.devices: {said}"
        ]

    def test_devices_of_their_own_need_vllm_and_heads_that_can_be_divided(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("align.pipeline.checks.spread.resolve_engine", lambda name: "transformers")
        (line,) = self.said(project, EIGHT, "sampling: {devices: [7]}")
        assert line.startswith("machine.yaml:1:21: sampling.devices: only vLLM") and line.endswith("samples in ppo")
        monkeypatch.setattr("align.pipeline.checks.spread.resolve_engine", lambda name: "vllm")
        config = project / "base" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": 4}))
        two = "sampling: {devices: [6, 7], tensor_parallel: 2}"
        assert self.said(project, EIGHT, two) == []

    @pytest.mark.parametrize(
        ("devices", "said"),
        [
            ("[3, 1, 3]", "GPU 3 twice"),
            ("[1, 2, 3], tensor_parallel: 2", "3 GPUs, which engines of 2"),
            ("[]", "must not be empty"),
        ],
    )
    def test_lists_that_make_no_sense(self, project: Path, devices: str, said: str) -> None:
        with pytest.raises(RecipeError, match=rf"machine.yaml:1:\d+: sampling.*{said}"):
            plan_of(project, {}, text=f"sampling: {{devices: {devices}}}")

    def test_several_gpus_need_vllm(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("align.pipeline.checks.spread.resolve_engine", lambda name: "transformers")
        lines = self.said(project, EIGHT, "sampling: {tensor_parallel: 2}")
        assert any("sampled: vLLM is not what samples there" in line for line in lines)

    def test_a_plan_refuses_too(self, project: Path, plan: Any) -> None:
        (project / "machine.yaml").write_text("sampling:\n  tensor_parallel: 2\n")
        answer = plan()
        assert answer.code in (2, 4)
        assert "machine.yaml:2:20: sampling.tensor_parallel" in answer.err

    def test_nodes_need_ray(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        (line,) = self.said(project, CPU, "training: {nodes: 2}")
        assert line == "machine.yaml:1:19: training.nodes: 2, but Ray is not installed in this environment"

    def test_one_process_cannot_be_several(self, project: Path) -> None:
        with pytest.raises(RecipeError, match=r"--in-process: .*machine.yaml:1:23: training.processes is 2, but sft would train"):
            refuse_in_process(plan_of(project, {}, text="training: {processes: 2}"))
        with pytest.raises(RecipeError, match=r"training.strategy is fsdp2"):
            refuse_in_process(plan_of(project, {}, text="training: {strategy: fsdp2}"))
        with pytest.raises(RecipeError, match=r"training.nodes is 2"):
            refuse_in_process(plan_of(project, {}, text="training: {nodes: 2}"))
        with pytest.raises(RecipeError, match=r"--in-process: .*machine.yaml:1:21: sampling.devices gives ppo an engine"):
            refuse_in_process(plan_of(project, {}, text="sampling: {devices: cpu}"))
        refuse_in_process(plan_of(project, {"training": {"processes": 1}}))
        refuse_in_process(make_plan(load_recipe(project), project / "none", machine_file=MachineFile()))
