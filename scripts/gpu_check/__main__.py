"""Everything that only a GPU can show, in one command: `make gpu-check`.

    PYTHONPATH=scripts .venv/bin/python -m gpu_check [--only parity …] [--shape qwen3-0.6b] [--device cpu] [--out FILE]

Models have the true shape of Qwen3-0.6B and Llama-3.2-1B and random weights; nothing is downloaded. Trainings go
through the launcher of several processes, with one. The parts:

    stages   every stage runs, trainings in float32 and in bfloat16
    parity   the first loss of a training in bfloat16 is that in float32
    ranks    a training with fsdp2 has the losses of one with ddp
    sampler  trainer and sampler agree on what PPO and GRPO sampled, also after weights were exchanged and the engine slept
    memory   peak memory of every training is near what `align plan` said
    resume   kill -9 in the middle of a training in the stage's own process, and the same run again
    engine   vLLM's rate beside bare vLLM; its log-probabilities beside the trainer's, also after sleep and other weights
    speed    tokens per second and MFU of SFT and DPO beside TRL

Every line of the table passed, failed, or was not run, and why. A failed part does not end the check; the exit status is 1 then.
`--device cpu` is the same on a tiny model, so that only the device is new where there is one.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_check.engine import check_engine
from gpu_check.job import in_job
from gpu_check.line import Report, print_table
from gpu_check.project import Project
from gpu_check.speed import compare_speed
from gpu_check.stages import (
    compare_arithmetics,
    compare_memory,
    compare_samplers,
    compare_strategies,
    kill_and_resume,
    run_stages,
)

from align.engines.open import resolve_engine
from align.pipeline.worker import ENVIRONMENT, LIBRARIES
from align.runtime.device import device_name, visible_gpu
from align.runtime.gpus import GPU_VARIABLE
from align.store.atomic import write_json

RESULT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.json"
PARTS: dict[str, Callable[[Project, Report], None]] = {
    "stages": run_stages,
    "parity": compare_arithmetics,
    "ranks": compare_strategies,
    "sampler": compare_samplers,
    "memory": compare_memory,
    "resume": kill_and_resume,
    "engine": check_engine,
    "speed": compare_speed,
}
NEED_STAGES = {"parity", "ranks", "sampler", "memory", "resume"}
SHAPES = {"cuda": ["qwen3-0.6b", "llama-3.2-1b"], "cpu": ["tiny"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts, and the stages that they read")
    parser.add_argument("--shape", action="append", choices=SHAPES["cuda"], help="default: both")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=RESULT, help="takes the figures, as JSON")
    parser.add_argument(
        "--work", type=Path, help="folder for models and runs, kept; it must be empty. Default: one that is removed"
    )
    options = parser.parse_args()
    if options.work and options.work.exists() and any(options.work.iterdir()):
        parser.error(f"{options.work} is not empty")
    # Also for the processes that are started: with no GPU to see, every choice is the CPU's.
    os.environ.update(ENVIRONMENT)
    if options.device == "cpu":
        os.environ[GPU_VARIABLE] = ""
    elif device_name() == "cpu":
        print("There is no GPU that torch can use. `--device cpu` checks the rest on a tiny model.", file=sys.stderr)
        return 1
    report = Report()
    with tempfile.TemporaryDirectory() as scratch:
        for shape in SHAPES["cpu"] if options.device == "cpu" else options.shape or SHAPES["cuda"]:
            check_shape(shape, options, (options.work or Path(scratch)) / shape, report)
    print_table(report.lines)
    write_json(options.out, {**environment(options.device), "lines": [asdict(line) for line in report.lines], **report.figures})
    print(f"figures: {options.out}")
    return int(report.failed)


def check_shape(shape: str, options: argparse.Namespace, folder: Path, report: Report) -> None:
    """All chosen parts on one shape."""
    chosen = set(options.only or PARTS)
    if chosen & NEED_STAGES:
        chosen.add("stages")
    engine = resolve_engine("auto") if options.device == "cuda" else "transformers"
    project = Project(folder, shape, options.device, engine)
    with report.part("model", shape):
        folder.mkdir(parents=True, exist_ok=True)
        in_job("project", folder, project.write)
    for name, run in PARTS.items():
        if name not in chosen:
            continue
        with report.part(name, shape):
            if name == "engine" and resolve_engine("auto") != "vllm":
                report.not_run("vLLM", "it is not installed")
            else:
                run(project, report)


def environment(device: str) -> dict[str, Any]:
    from importlib.metadata import version

    gpu = visible_gpu()
    return {
        "command": shlex.join(["python", "-m", "gpu_check", *sys.argv[1:]]),
        "device": device if gpu is None else asdict(gpu),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in LIBRARIES},
    }


if __name__ == "__main__":
    sys.exit(main())
