"""Tokens per second and MFU of SFT and DPO beside TRL's trainers, by scripts/benchmarks/real_shape.py."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.job import in_job
from gpu_check.line import Report
from gpu_check.project import Project

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "real_shape.py"
OPTIONS = {
    "cuda": ["--precision", "bfloat16", "--rows", "32", "--steps", "5"],
    "cpu": ["--precision", "float32", "--rows", "2", "--steps", "1", "--threads", "1", "--layout", "padded"],
}
MFU_TARGET, SPEED_TARGET = 0.5, 1.5
"""The goals at 1 B weights on an H200; smaller GPUs and models are held to the second alone."""
GOAL_SHAPE, GOAL_DEVICES = "llama-3.2-1b", ("H100", "H200")


def compare_speed(project: Project, report: Report) -> None:
    """One optimizer step of either side, the same rows."""
    cases = ["--shape", project.shape, "--device", project.device, "--case", "sft", "--case", "dpo"]
    for figures in in_job("speed", project.folder, partial(_measure, [*cases, *OPTIONS[project.device]]))["cases"]:
        case = figures["case"]
        report.keep(case, figures)
        ours, theirs = figures["align"], figures["trl"][figures["beside"]]
        speed = theirs["median_seconds"] / ours["median_seconds"]
        found = (
            f"{ours['tokens_per_second']:,.0f} tokens/s beside {theirs['tokens_per_second']:,.0f}: {speed:.2f} times TRL "
            f"({figures['beside']}); memory {figures['ratio']['memory_peak']:.2f}"
        )
        if project.device == "cpu":  # a step of a tiny model is overhead, so that its rate says nothing
            report.check(case, ours["tokens_per_second"] > 0, found, "a rate")
        else:
            report.check(case, speed >= SPEED_TARGET, found, f"at least {SPEED_TARGET} times TRL")
        _check_utilisation(case, project, report, ours.get("model_flop_utilisation"))


def _measure(arguments: list[str]) -> Any:
    sys.path.insert(0, str(SCRIPT.parent))
    script = importlib.import_module(SCRIPT.stem)
    return script.measure(script.options_of(arguments))


def _check_utilisation(case: str, project: Project, report: Report, found: float | None) -> None:
    what = f"{case}, MFU"
    if found is None:
        report.not_run(what, "the peak rate of this device is not in align/testing/flops.py")
    elif project.device == "cpu":
        report.check(what, found > 0, f"{found:.1%} of a measured matrix product", "a figure")
    elif project.shape == GOAL_SHAPE and _is_goal_device():
        report.check(what, found >= MFU_TARGET, f"{found:.1%}", f"at least {MFU_TARGET:.0%}")
    else:
        report.check(what, found > 0, f"{found:.1%}", f"a figure; the goal is for {GOAL_SHAPE} on {', '.join(GOAL_DEVICES)}")


def _is_goal_device() -> bool:
    from align.runtime.device import visible_gpu

    gpu = visible_gpu()
    return gpu is not None and any(name in gpu.name for name in GOAL_DEVICES)
