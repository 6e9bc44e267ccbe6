"""Estimates of whole plans: which shape a stage gets, which rows count, what fits, and that a plan never fails because of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align.models.folder import ModelFolder
from align.pipeline.estimate import plan as estimate_module
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.plan import PlanEstimate, StageEstimate, estimate_plan, fits
from align.pipeline.estimate.table import advice, count_text, render_estimates, size_text
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.runtime import control_group

GIB = 1 << 30
MACHINE = Machine("cpu", "memory", 8 * GIB, 8 * GIB, 50 * GIB, has_bfloat16=False)


def estimate(project: Path, out: Path, *overrides: str, machine: Machine = MACHINE) -> dict[str, StageEstimate]:
    plan = make_plan(load_recipe(project / "recipe.yaml", overrides), out)
    return {stage.name: stage for stage in estimate_plan(plan, machine).stages}


def peak(stage: StageEstimate) -> int:
    assert stage.of_recipe is not None
    return stage.of_recipe.memory.peak


def batch_bytes(stage: StageEstimate) -> int:
    """Of the forward and backward pass, which the process outweighs in models of a few thousand parameters."""
    assert stage.of_recipe is not None
    return stage.of_recipe.memory.activations


def test_every_training_stage_has_all_methods_and_no_other_stage_any(project: Path, tmp_path: Path) -> None:
    stages = estimate(project, tmp_path / "empty")
    assert list(stages) == ["sft", "reward", "rs", "orpo", "ppo", "dpo"]
    for stage in stages.values():
        assert [found.method for found in stage.estimates] == ["full", "lora", "qlora"]
        assert stage.chosen == "full"


def test_a_stage_has_the_shape_of_what_it_starts_from(project: Path, tmp_path: Path) -> None:
    stages = estimate(project, tmp_path / "empty")
    counts = {name: stage.estimates[0].trainable_parameters for name, stage in stages.items()}
    # A reward model has a score head of 32 numbers more; the head of the language model is its embedding.
    assert counts["reward"] == counts["sft"] + 32
    assert counts["sft"] == counts["rs"] == counts["dpo"] == counts["orpo"] == counts["ppo"]


def test_a_model_with_chat_settings_has_a_shape_too(project: Path, tmp_path: Path) -> None:
    plain = estimate(project, tmp_path / "empty")
    chat = estimate(project, tmp_path / "empty", "inputs.base.chat={template_kwargs: {enable_thinking: false}}")
    assert peak(chat["sft"]) == peak(plain["sft"])


def test_the_recipe_method_is_marked_and_uses_its_settings(project: Path, tmp_path: Path) -> None:
    peft = "stages.sft.peft={method: lora, rank: 2, target_modules: [q_proj]}"
    stage = estimate(project, tmp_path / "empty", peft)["sft"]
    assert stage.chosen == "lora"
    assert stage.of_recipe is not None
    # Two layers, a square matrix of 32 in each.
    assert stage.of_recipe.trainable_parameters == 2 * 2 * (32 + 32)
    assert [found.method for found in stage.estimates] == ["full", "lora", "qlora"]
    virtual = estimate(project, tmp_path / "empty", "stages.sft.peft={method: prompt_tuning, num_virtual_tokens: 3}")["sft"]
    assert [found.method for found in virtual.estimates] == ["full", "lora", "qlora", "prompt_tuning"]
    assert virtual.of_recipe is not None
    assert virtual.of_recipe.trainable_parameters == 3 * 32


def test_smaller_micro_batches_and_shorter_rows_take_less(project: Path, tmp_path: Path) -> None:
    def size(*overrides: str) -> int:
        return peak(estimate(project, tmp_path / "empty", *overrides)["sft"])

    assert size("stages.sft.micro_batch_size=1") < size()
    assert size("stages.sft.max_tokens=256") > size("stages.sft.max_tokens=128")


def test_the_rows_that_are_there_count_not_the_limit(project: Path, tmp_path: Path) -> None:
    known = estimate(project, tmp_path / "a", "stages.reward.max_tokens=512")["reward"]
    assert batch_bytes(known) == batch_bytes(estimate(project, tmp_path / "a", "stages.reward.max_tokens=256")["reward"])
    # Pairs that a stage will make are not known: the limit counts.
    unknown = estimate(project, tmp_path / "a", "stages.dpo.max_tokens=512")["dpo"]
    assert batch_bytes(unknown) > batch_bytes(estimate(project, tmp_path / "a", "stages.dpo.max_tokens=256")["dpo"])


def test_what_a_stage_made_before_counts_as_rows(project: Path, finished_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
    override = "stages.dpo.beta=0.3"
    after, before = (estimate(project, folder, override)["dpo"] for folder in (out, tmp_path / "empty"))
    assert batch_bytes(after) < batch_bytes(before)
    assert after.measured_bytes is None
    cached = estimate(project, out)["dpo"].measured_bytes
    assert cached is not None
    assert cached > 100 << 20


def test_a_model_that_cannot_be_read_is_unknown_and_the_plan_goes_on(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project / "base" / "config.json"
    settings = json.loads(config.read_text())
    del settings["num_hidden_layers"]
    config.write_text(json.dumps(settings))
    stages = estimate(project, tmp_path / "empty")
    assert {stage.estimates for stage in stages.values()} == {()}
    assert stages["sft"].of_recipe is None
    assert advice(stages["sft"], MACHINE) is None
    assert "unknown" in rendered(PlanEstimate(MACHINE, tuple(stages.values())), width=80)


def test_a_scorer_that_cannot_be_read_leaves_ppo_unknown(project: Path, tmp_path: Path) -> None:
    other = shutil.copytree(project / "base", project / "other")
    settings = json.loads((other / "config.json").read_text())
    del settings["num_hidden_layers"]
    (other / "config.json").write_text(json.dumps(settings))
    stages = estimate(project, tmp_path / "empty", f"inputs.other={{kind: model, path: {other}}}", "stages.reward.model=other")
    assert stages["ppo"].estimates == ()
    assert stages["dpo"].estimates != ()


def test_rows_that_cannot_be_read_are_unknown_too(project: Path, tmp_path: Path) -> None:
    known = batch_bytes(estimate(project, tmp_path / "empty")["reward"])
    (project / "preferences.jsonl").write_text("not json\n")
    assert batch_bytes(estimate(project, tmp_path / "empty")["reward"]) > known


def test_full_that_does_not_fit_is_said_with_what_fits(project: Path, tmp_path: Path) -> None:
    stage = estimate(project, tmp_path / "empty")["sft"]
    full, lora, qlora = stage.estimates
    sizes = [
        replace(found, memory=replace(found.memory, peak=size * GIB)) for found, size in ((full, 31), (lora, 20), (qlora, 6))
    ]
    large = replace(stage, estimates=tuple(sizes))
    small = replace(MACHINE, free_bytes=10 * GIB)
    assert advice(large, small) == "sft: full needs about 31 GiB of 10 GiB; qlora needs 6.0 GiB"
    assert advice(large, replace(small, free_bytes=24 * GIB)) == "sft: full needs about 31 GiB of 24 GiB; lora needs 20 GiB"
    assert advice(large, replace(small, free_bytes=40 * GIB)) is None
    assert advice(large, replace(small, free_bytes=GIB)) is None


def test_what_the_quickstart_keeps_on_the_disk(project: Path, tmp_path: Path) -> None:
    """In models of the base's size: 12, where every copy of an equal file and the digits of float32 made it 30."""
    config = project / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    recipe = load_recipe(Path(__file__).parents[3] / "recipes" / "quickstart", [f"inputs.base.path={project / 'base'}"])
    stages = estimate_plan(make_plan(recipe, tmp_path / "empty"), MACHINE).stages
    kept = {stage.name: stage.of_recipe.kept_bytes for stage in stages if stage.of_recipe is not None}
    model = kept["orpo"]
    units = {name: round(size / model, 1) for name, size in kept.items()}
    # sft_best is an epoch of sft, by another name.
    dpo = {"dpo-1": 1, "dpo-2": 1}
    assert units == {"sft": 3, "reward_model": 1, "rejection_sampling": 2, "orpo": 1, "ppo": 1, **dpo}
    qwen3_8b = 8_190_735_360
    assert sum(kept.values()) / model * 2 * qwen3_8b < 200e9


def test_it_does_not_fit_a_full_disk_either(project: Path, tmp_path: Path) -> None:
    stage = estimate(project, tmp_path / "empty")["sft"]
    assert stage.of_recipe is not None
    assert fits(stage.of_recipe, MACHINE)
    full = replace(MACHINE, free_disk_bytes=1000)
    assert not fits(stage.of_recipe, full)
    assert "does not fit (1000 B of disk)" in rendered(PlanEstimate(full, (stage,)))


def test_disk_counts_checkpoints_epochs_and_the_result(project: Path, tmp_path: Path) -> None:
    stages = estimate(project, tmp_path / "empty")
    sft, dpo = stages["sft"].of_recipe, stages["dpo"].of_recipe
    assert sft is not None
    assert dpo is not None
    size = 4 * sft.trainable_parameters
    # Three epochs, the last of which is the result; three checkpoints of weights and two moments.
    assert (sft.kept_bytes, sft.disk_bytes) == (3 * size, 3 * size + 3 * 3 * size)
    assert (dpo.kept_bytes, dpo.disk_bytes) == (size, size + 3 * 3 * size)


def test_results_of_a_model_in_bfloat16_take_half(project: Path, tmp_path: Path) -> None:
    before = estimate(project, tmp_path / "empty")
    config = project / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    after = estimate(project, tmp_path / "empty", "stages.dpo.save_dtype=float32")
    for name, share in {"sft": 0.5, "reward": 0.5, "ppo": 0.5, "dpo": 1.0}.items():
        old, new = before[name].of_recipe, after[name].of_recipe
        assert old is not None
        assert new is not None
        assert new.kept_bytes == share * old.kept_bytes
        assert old.disk_bytes - old.kept_bytes == new.disk_bytes - new.kept_bytes, "checkpoints stay float32"


def test_a_gpu_has_no_worker_in_its_memory_but_a_context(project: Path, tmp_path: Path) -> None:
    gpu = Machine("cuda", "NVIDIA H100", 80 * GIB, 79 * GIB, 50 * GIB, has_bfloat16=True)
    stages = estimate(project, tmp_path / "empty", "stages.ppo.engine=auto", machine=gpu)
    assert stages["sft"].of_recipe is not None
    assert stages["sft"].of_recipe.memory.process == 600 << 20
    text = rendered(PlanEstimate(gpu, tuple(stages.values())))
    assert "Free here: 79 GiB of 80 GiB of the memory of NVIDIA H100, 50 GiB of disk." in text


def test_an_engine_on_a_gpu_sleeps_while_models_learn(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.pipeline.estimate.memory.resolve_engine", lambda name: "vllm")
    gpu = Machine("cuda", "NVIDIA H100", 80 * GIB, 79 * GIB, 50 * GIB, has_bfloat16=True)
    peaks = {}
    for share in (0.001, 0.01, 0.02):
        ppo = estimate(project, tmp_path / "empty", f"stages.ppo.engine_memory_share={share}", machine=gpu)["ppo"].of_recipe
        assert ppo is not None
        peaks[share] = ppo.memory.peak
    # Either the small models of this project learn, or the engine samples; the two are never added.
    assert peaks[0.02] - peaks[0.01] == pytest.approx(0.01 * 80 * GIB, abs=2)
    assert peaks[0.01] - peaks[0.001] < 0.009 * 80 * GIB
    # One that samples ahead is awake while they learn.
    ahead = estimate(project, tmp_path / "empty", "stages.ppo.rollouts_ahead=1", machine=gpu)["ppo"].of_recipe
    asleep = estimate(project, tmp_path / "empty", "stages.ppo.engine_memory_share=0.001", machine=gpu)["ppo"].of_recipe
    assert ahead is not None and asleep is not None
    assert ahead.memory.other_models - asleep.memory.other_models == pytest.approx(0.3 * 80 * GIB, abs=2)


def rendered(found: PlanEstimate, *, width: int = 100, all_methods: bool = False) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        for part in render_estimates(found, all_methods=all_methods):
            console.print(part)
    return capture.get()


def test_the_table_is_readable_on_eighty_columns(project: Path, tmp_path: Path) -> None:
    stages = estimate(project, tmp_path / "empty")
    tight = replace(MACHINE, free_bytes=GIB // 4)
    lines = rendered(PlanEstimate(tight, tuple(stages.values())), width=80, all_methods=True).splitlines()
    (first,) = [line for line in lines if line.startswith("sft")]
    assert "full ←" in first
    assert first.rstrip().endswith("does not fit (256 MiB)")
    assert max(len(line) for line in lines) <= 80


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1000, "1000 B"),
        (1024, "1.0 KiB"),
        (436 << 20, "436 MiB"),
        (GIB * 23 // 10, "2.3 GiB"),
        (157 * GIB, "157 GiB"),
    ],
)
def test_sizes_have_two_or_three_digits(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("count", "text"), [(96, "96"), (23_136, "23 k"), (7_640_000, "7.6 M"), (6_738_415_616, "6.7 B")])
def test_counts_too(count: int, text: str) -> None:
    assert count_text(count) == text


def test_this_machine_can_be_read() -> None:
    machine = read_machine(Path("/nowhere/at/all"))
    assert 0 < machine.free_bytes <= machine.total_bytes
    assert machine.free_disk_bytes > 0


def test_the_first_visible_gpu_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "0, GPU-aaa, NVIDIA A100, 40960, 1024, 8.0\n1, GPU-bbb, Tesla T4, 15360, 360, 7.5\n"
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{rows}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("align.pipeline.estimate.machine.torch_cuda", lambda: 13.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = read_machine(tmp_path)
    assert (machine.device, machine.name, machine.has_bfloat16) == ("cuda", "NVIDIA A100", True)
    assert (machine.total_bytes, machine.free_bytes) == (40960 << 20, 39936 << 20)
    for visible in ("1", "GPU-bbb"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        machine = read_machine(tmp_path)
        assert (machine.name, machine.free_bytes, machine.has_bfloat16) == ("Tesla T4", 15000 << 20, False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_machine(tmp_path).device == "cpu"
    program.write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert read_machine(tmp_path).device == "cpu"


def test_control_groups_are_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "group"
    folder.mkdir()
    (folder / "memory.max").write_text(f"{2 * GIB}\n")
    (folder / "memory.current").write_text(f"{GIB}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    unlimited = tmp_path / "parent"
    unlimited.mkdir()
    (unlimited / "memory.max").write_text("max\n")
    places = [(2, place) for place in (folder, unlimited, tmp_path / "absent")]
    monkeypatch.setattr(control_group, "group_folders", lambda controller: iter(places))
    found = read_machine(tmp_path)
    assert found.total_bytes <= 2 * GIB
    assert found.free_bytes <= 3 * GIB // 2


def test_an_estimate_imports_no_torch(project: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from align.cli.main import main; "
        f"code = main(['plan', {str(project / 'recipe.yaml')!r}, '--out', {str(tmp_path / 'out')!r}, '--memory']); "
        "print(code, sorted({'torch', 'transformers', 'vllm', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "qlora" in done.stdout


def test_each_model_folder_and_each_data_file_is_read_once(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    original = estimate_module.read_shape  # type: ignore[attr-defined]

    def remember(folder: ModelFolder) -> Any:
        read.append(folder)
        return original(folder)

    monkeypatch.setattr(estimate_module, "read_shape", remember)
    estimate(project, tmp_path / "empty")
    assert len(read) == 1
