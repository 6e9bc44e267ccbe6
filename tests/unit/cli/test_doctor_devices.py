"""`align doctor` on machines with several GPUs, and with a machine file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """\
#!/bin/sh
case "$1" in
  --query*) printf '0, GPU-aaa, NVIDIA A100, 40960, 1024, 8.0\\n1, GPU-bbb, Tesla T4, 15360, 360, 7.5\\n' ;;
  topo) printf '\\tGPU0\\tGPU1\\tCPU Affinity\\nGPU0\\t X \\tNV12\\t0-7\\nGPU1\\tNV12\\t X \\t0-7\\n' ;;
esac
"""


@pytest.fixture
def checks(align: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The checks of `align doctor` by name, on a machine with two GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("align.runtime.device.torch_cuda", lambda: 13.0)
    monkeypatch.setattr("align.pipeline.estimate.machine.torch_cuda", lambda: 13.0)

    def call(*options: str, code: int = 0) -> dict[str, Any]:
        answer = align("doctor", "--json", *options)
        assert answer.code == code, answer.err
        return {check["name"]: check for check in json.loads(answer.out)["checks"]}

    return call


def test_every_visible_gpu_is_listed_with_what_connects_them(checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks()
    assert found["gpu 0"]["found"] == "NVIDIA A100, 40 GiB, bfloat16, compute capability 8"
    assert found["gpu 1"]["found"].startswith("Tesla T4, 15 GiB, no bfloat16")
    assert found["link"]["found"] == "NV12 (NVLink): 0–1"
    assert found["exchange"]["found"] == "gloo, NCCL"
    assert "machine file" not in found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    found = checks()
    assert {name for name in found if name.startswith("gpu ")} == {"gpu GPU-b"}
    assert "link" not in found


def test_what_is_missing_for_a_machine_file(checks: Any, tmp_path: Path) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text("training: {processes: 2}\n")
    assert checks()["machine file"]["state"] == "ok"
    file.write_text("training: {processes: 4}\n")
    missing = checks(code=4)["machine file"]
    assert missing["found"].endswith("machine.yaml:1:23: training.processes: 4, but 2 GPUs are visible")
    assert "processes: 2" in missing["advice"]


def test_ray_is_looked_for_where_it_is_wanted(checks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.yaml").write_text("sampling: {pool: ray}\n")
    monkeypatch.setattr("align.pipeline.checks.devices.importlib.util.find_spec", lambda name: None)
    missing = checks("--machine", "other.yaml", code=4)["machine file"]
    assert "Ray is not installed" in missing["found"]
    assert "align-llm[ray]" in missing["advice"]


def test_a_mistake_in_the_file_is_an_error(align: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "machine.yaml").write_text("trainings: {}\n")
    answer = align("doctor")
    assert answer.code == 2
    assert "machine.yaml:1:1: trainings: unknown key; did you mean 'training'?" in answer.err
