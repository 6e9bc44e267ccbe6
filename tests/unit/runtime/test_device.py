"""What is read of the GPU, with a driver and a torch that are made up: no test machine has one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from align import load_recipe, run_recipe
from align.cli.doctor import check_machine
from align.engines.open import resolve_dtype
from align.errors import EnvironmentProblem
from align.pipeline.estimate.machine import read_machine
from align.pipeline.plan import make_plan
from align.runtime import device
from align.runtime.device import (
    device_line,
    device_name,
    free_memory,
    has_bfloat16,
    peak_gpu_bytes,
    refuse_unusable_gpu,
    visible_gpu,
)
from align.runtime.events import StageStarted
from align.testing import Recorder
from align.training.loop import resolve_precision

A100, T4 = "0, GPU-aaa, NVIDIA A100, 40960, 1024, 8.0", "1, GPU-bbb, Tesla T4, 15360, 360, 7.5"
PARTS = (
    "GPU 0: NVIDIA A100 (UUID: GPU-aaa)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-one)\n"
    "  MIG 1g.5gb      Device  1: (UUID: MIG-two)\n"
    "GPU 1: Tesla T4 (UUID: GPU-bbb)\n"
)
Driver = Callable[..., Path]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Put an nvidia-smi on PATH, and a torch for CUDA beside it."""

    def put(*rows: str, listing: str = "", cuda: str = "13.1", torch_version: float | None = 13.0) -> Path:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        lines = "\n".join(rows)
        program.write_text(
            f"#!/bin/sh\ncase \"$1\" in\n--query*) echo '{lines}';;\n-L) echo '{listing}';;\n"
            f"*) echo '| NVIDIA-SMI 580.1    Driver Version: 580.1    CUDA Version: {cuda} |';;\nesac\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
        monkeypatch.setattr(device, "torch_cuda", lambda: torch_version)
        for module in ("align.pipeline.estimate.machine", "align.runtime.bitsandbytes_check"):
            monkeypatch.setattr(f"{module}.torch_cuda", lambda: torch_version)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return program

    return put


def torch_with(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> None:
    """Let torch say that it has a GPU of this compute capability; None: that it has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    # It is true of every GPU: torch counts what it emulates.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)


def seen() -> tuple[str, int | None, bool] | None:
    gpu = visible_gpu()
    return None if gpu is None else (gpu.name, None if gpu.total_bytes is None else gpu.total_bytes >> 20, gpu.has_bfloat16)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ("NVIDIA A100", 40960, True)),
        ("1", ("Tesla T4", 15360, False)),
        ("1,0", ("Tesla T4", 15360, False)),
        ("GPU-b", ("Tesla T4", 15360, False)),
        ("", None),
        ("-1", None),
        ("7", None),
    ],
)
def test_the_first_visible_gpu(driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: Any) -> None:
    driver(A100, T4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert seen() == expected


@pytest.mark.parametrize(
    ("visible", "name", "mib"),
    [
        (None, "NVIDIA A100 MIG 3g.20gb", 20 << 10),
        ("0", "NVIDIA A100 MIG 3g.20gb", 20 << 10),
        ("MIG-two", "NVIDIA A100 MIG 1g.5gb", 5 << 10),
        ("1", "Tesla T4", 15360),
    ],
)
def test_a_part_of_a_gpu(driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str, mib: int) -> None:
    """With MIG the driver's figure is that of the whole card, which no process can use."""
    driver(A100, T4, listing=PARTS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert seen() == (name, mib, visible != "1")


V100 = "0, GPU-ddd, Tesla V100, 16384, 0, 7.0"


@pytest.mark.parametrize(
    ("rows", "visible", "line"),
    [
        ([A100], None, "NVIDIA A100, 40 GiB, bfloat16"),
        ([A100, T4], None, "NVIDIA A100, 40 GiB, bfloat16, the first of 2 that are visible"),
        ([A100, T4], "1", "Tesla T4, 15 GiB, no bfloat16: auto means float32"),
        ([A100, T4], "1,0", "Tesla T4, 15 GiB, no bfloat16: auto means float32, the first of 2 that are visible"),
        ([A100, T4], "", "CUDA_VISIBLE_DEVICES= leaves none of 2 GPUs; stages run on the CPU"),
        ([A100], "3", "CUDA_VISIBLE_DEVICES=3 leaves none of 1 GPUs; stages run on the CPU"),
        (["0, GPU-ccc, NVIDIA GB10, [N/A], [N/A], [N/A]"], None, "NVIDIA GB10, memory shared with the computer, no bfloat16"),
        ([V100], None, "Tesla V100, 16 GiB, no bfloat16: auto means float32; it is too old for CUDA 13: compute capability 7, "),
    ],
)
def test_what_stages_run_on_is_a_line(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: list[str], visible: str | None, line: str
) -> None:
    driver(*rows)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = device_line()
    assert found is not None
    assert found.startswith(line)
    assert read_machine(tmp_path).device_line == found
    (check,) = [check for check in check_machine(tmp_path) if check.name == "gpu"]
    assert check.found == found
    assert (check.state, "CUDA 12" in check.advice) == (("missing", True) if rows == [V100] else ("info", False))


def test_no_line_without_a_gpu() -> None:
    assert device_line() is None


def test_a_gpu_that_cannot_be_used_is_refused_before_anything_runs(driver: Driver, project: Path) -> None:
    driver(A100, cuda="12.4")
    recorder = Recorder()
    with pytest.raises(EnvironmentProblem, match=r"NVIDIA A100.*too old"):
        run_recipe(load_recipe(project), project / "runs", sinks=[recorder])
    assert recorder.of(StageStarted) == []
    driver(V100, torch_version=12.8)
    refuse_unusable_gpu()


@pytest.mark.parametrize("setting", ["optimizer=adamw_8bit", "peft={method: qlora}"])
def test_bitsandbytes_is_looked_for_when_a_plan_is_made(
    driver: Driver, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    def plan() -> None:
        make_plan(load_recipe(project, [f"stages.dpo.{setting}"]), project / "runs")

    plan()
    # A library of one major version serves all of its minor ones.
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    (package / "libbitsandbytes_cuda128.so").touch()
    find = importlib.util.find_spec
    spec: Any = ModuleSpec("bitsandbytes", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == "bitsandbytes" else find(name, *rest))
    plan()  # on a CPU it needs none
    driver(A100)
    with pytest.raises(EnvironmentProblem, match=r"dpo: .*needs bitsandbytes, and the installed one has no library for CUDA 13"):
        plan()
    driver(A100, torch_version=12.6)
    plan()
    spec = None
    with pytest.raises(EnvironmentProblem, match=r"dpo: .*needs bitsandbytes, which is not installed") as found:
        plan()
    assert "pip install bitsandbytes==" in str(found.value.hint)


def test_memory_that_the_driver_does_not_know_is_that_of_the_computer(driver: Driver, tmp_path: Path) -> None:
    without = read_machine(tmp_path)
    driver("0, GPU-ccc, NVIDIA GB10, [N/A], [N/A], 12.1")
    machine = read_machine(tmp_path)
    assert (machine.device, machine.name, machine.total_bytes) == ("cuda", "NVIDIA GB10", without.total_bytes)
    assert machine.has_bfloat16


def test_no_driver_and_one_that_does_not_answer(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = driver(A100)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpu() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpu() is None
    assert device_name() == "cpu"


def test_a_driver_that_torch_cannot_use_is_no_silent_cpu(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver(A100, cuda="12.4")
    torch_with(monkeypatch, None)
    with pytest.raises(
        EnvironmentProblem, match=r"NVIDIA A100.*too old: it runs CUDA 12\.4, and torch was built for CUDA 13"
    ) as found:
        device_name()
    assert "CUDA_VISIBLE_DEVICES=" in str(found.value.hint)
    (check,) = [check for check in check_machine(tmp_path) if check.name == "gpu"]
    assert (check.state, "too old" in check.found) == ("missing", True)
    # The way out that the hint names.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_name() == "cpu"


def test_a_driver_that_is_new_enough_and_fails_all_the_same(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(A100)
    torch_with(monkeypatch, None)
    with pytest.raises(EnvironmentProblem, match="cannot initialise CUDA 13"):
        device_name()


def test_a_torch_for_cpus_runs_there(driver: Driver, tmp_path: Path) -> None:
    driver(A100, torch_version=None)
    assert device_name() == "cpu"
    assert read_machine(tmp_path).device == "cpu"
    (check,) = [check for check in check_machine(tmp_path) if check.name == "gpu"]
    assert (check.state, check.found) == ("differs", "NVIDIA A100, 40 GiB, bfloat16; torch is a build for CPUs")


@pytest.mark.parametrize(("capability", "expected"), [(None, False), ((7, 5), False), ((8, 0), True), ((12, 1), True)])
def test_bfloat16_is_what_the_chip_computes(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, expected: bool
) -> None:
    torch_with(monkeypatch, capability)
    assert has_bfloat16() is expected
    arithmetic = "bfloat16" if expected else "float32"
    assert (resolve_precision("auto"), resolve_dtype("auto")) == (arithmetic, arithmetic)


def test_the_version_of_torch_is_read_without_importing_it() -> None:
    device.torch_cuda.cache_clear()
    assert device.torch_cuda() == (None if torch.version.cuda is None else float(torch.version.cuda))


def test_memory_of_the_gpu_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    free_memory()
    assert calls == ["empty_cache"]


def test_the_peak_is_what_torch_allocated_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_gpu_bytes() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    assert peak_gpu_bytes() == 123


def test_products_of_float32_stay_exact_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, or torch.compile with transformers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert device_name() == "cuda"
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
