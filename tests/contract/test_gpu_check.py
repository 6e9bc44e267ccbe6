"""`make gpu-check` in its form for a CPU: all of its parts on a tiny model, so that only the device is new where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    command = [sys.executable, "-m", "gpu_check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_part_passes_on_a_cpu(tmp_path: Path) -> None:
    done = gpu_check("--device", "cpu", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    result: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    verdicts: dict[str, Counter[str]] = {
        part: Counter() for part in ("stages", "parity", "ranks", "sampler", "memory", "resume", "engine", "speed")
    }
    for line in result["lines"]:
        verdicts[line["part"]][line["verdict"]] += 1
    passed = {part: counts["pass"] for part, counts in verdicts.items()}
    assert passed == {"stages": 19, "parity": 4, "ranks": 1, "sampler": 4, "memory": 14, "resume": 1, "engine": 3, "speed": 4}
    assert [line["what"] for line in result["lines"] if line["verdict"] == "not run"] == [
        "memory that sleep frees",
        "log-probabilities of an engine of 2 GPUs",
    ]
    assert result["versions"]["torch"]


def test_a_part_that_fails_is_a_line_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from gpu_check.line import Report

    report = Report()
    with report.part("one", "tiny"):
        raise RuntimeError("CUDA error: no kernel image")
    with report.part("two", "tiny"):
        report.check("it", True, "1", "1")
    assert [(line.part, line.verdict) for line in report.lines] == [("one", "fail"), ("two", "pass")]
    assert "no kernel image" in report.lines[0].found
    assert report.failed


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = gpu_check("--out", str(tmp_path / "gpu.json"))
    assert (done.returncode, "no GPU" in done.stderr, (tmp_path / "gpu.json").exists()) == (1, True, False)
