#!/usr/bin/env python3
"""One optimizer step at the size of a real model, ours beside TRL's trainers: seconds and peak memory.

    .venv/bin/python scripts/benchmarks/real_shape.py [--case dpo] [--threads 2]
    .venv/bin/python scripts/benchmarks/real_shape.py --device cuda --precision bfloat16 --shape llama-3.2-1b --rows 32

A public model's shape with random weights, written as a folder that both sides read. All rows are one batch, so that every step
of either side sees the same rows; their lengths are in the result. Ours are the stages as a recipe runs them. TRL has the same
batch and arithmetic, its own AdamW and fused head, no gradient checkpointing (neither has ours), and for DPO its own precomputed
log-probabilities of the reference; its two layouts for SFT, padded and padding-free, are both run, and the faster counts.

Each side is a process of its own. On a CPU they take steps in turn, so that what else runs on the machine slows both down; a GPU
has one side after the other. The first step of each is not counted. Memory on a CPU is the resident set: the largest during the
steps, and that less what was there before the first; on a GPU it is what torch has allocated. Tokens per second are of real
tokens, a prompt counted once for each completion; for MFU see align/testing/flops.py.

Without options it writes scripts/benchmarks/real_shape.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from align.testing.flops import measured_matmul_flops, peak_flops, training_flops
from align.testing.project import write_jsonl
from align.testing.shapes import SHAPES, shaped_causal_lm

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

RESULT = Path(__file__).with_suffix(".json")
DEFAULT_SHAPE = "smollm2-135m"
# Median tokens of a prompt and of a completion; log-normal, as chats are. Templates add some tokens.
MEDIANS = {"sft": (90, 150), "dpo": (250, 100), "reward_model": (250, 100)}
SPREAD, MOST = 0.5, 900
ROWS = {"sft": 6, "dpo": 3, "reward_model": 3}
TRL_LAYOUTS = {"sft": ("padded", "padding_free"), "dpo": ("padded",), "reward_model": ("padded",)}
LEARNING_RATE = 1e-5
TARGET = 0.7


def make_rows(case: str, count: int) -> list[dict[str, str]]:
    """Random letters, of which the tokenizer makes a token each."""
    draw = random.Random(case)
    prompt, completion = MEDIANS[case]

    def text(median: int) -> str:
        count = min(MOST, round(median * draw.lognormvariate(0, SPREAD)))
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=count))

    names = ("completion",) if case == "sft" else ("chosen", "rejected")
    return [{"prompt": text(prompt), **{name: text(completion) for name in names}} for _ in range(count)]


def write_project(folder: Path, options: argparse.Namespace) -> None:
    shaped_causal_lm(folder / "base", options.shape)
    for case in MEDIANS:
        write_jsonl(folder / f"{case}.jsonl", make_rows(case, options.rows or ROWS[case]))


class Gate:
    """Waits for the parent's word before every step, and reports what the last one took."""

    def __init__(self, steps: int, device: str) -> None:
        self._left = steps
        self._memory = GpuMemory() if device == "cuda" else ProcessMemory()
        self._before = 0
        self._started = self._started_cpu = 0.0

    def open(self) -> None:
        self._before = self._memory.start()
        self._wait()

    def step(self) -> None:
        peak = self._memory.peak()
        seconds, cpu_seconds = time.perf_counter() - self._started, time.process_time() - self._started_cpu
        report = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak, "growth": peak - self._before}
        print(json.dumps(report), file=REPORTS, flush=True)
        self._left -= 1
        if not self._left:
            os._exit(0)  # saving is not measured
        self._wait()

    def _wait(self) -> None:
        sys.stdin.readline()
        self._started, self._started_cpu = time.perf_counter(), time.process_time()


class ProcessMemory:
    """The resident set of this process."""

    def start(self) -> int:
        # The largest so far becomes what it is now: what loading took is not the steps' memory.
        Path("/proc/self/clear_refs").write_text("5")
        return self._read("VmRSS")

    def peak(self) -> int:
        return self._read("VmHWM")

    def _read(self, name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


class GpuMemory:
    """What torch has allocated. Reading the peak waits until the GPU has done its work."""

    def start(self) -> int:
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        import torch

        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


REPORTS = sys.stdout


def run_side(options: argparse.Namespace) -> None:
    """Train in this process; what is printed besides the reports goes to stderr."""
    global REPORTS
    REPORTS, sys.stdout = sys.stdout, sys.stderr
    import torch
    import transformers.trainer
    from transformers import TrainerCallback

    torch.set_num_threads(options.threads)
    gate = Gate(options.steps + 1, options.device)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.open()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            gate.step()

    # The one place that both sides' trainers take callbacks from.
    transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
    if options.side == "align":
        run_ours(options)
    else:
        run_trl(options)


def run_ours(options: argparse.Namespace) -> None:
    from align import load_recipe, run_recipe

    case, folder = options.case, options.project
    rows = "pairs" if case == "dpo" else "data"
    kind = "instructions" if case == "sft" else "preferences"
    held_out = ", held_out_share: 0.001" if case == "reward_model" else ""
    with tempfile.TemporaryDirectory() as work:
        recipe = Path(work) / "recipe.yaml"
        recipe.write_text(f"""\
name: real-shape
inputs:
  base: {{kind: model, path: {folder / "base"}}}
  rows: {{kind: {kind}, path: {folder / f"{case}.jsonl"}}}
stages:
  it: {{stage: {case}, model: base, {rows}: rows, batch_size: {options.rows or ROWS[case]}, num_epochs: {options.steps + 1},
       lr_scheduler: constant, learning_rate: {LEARNING_RATE}, precision: {options.precision}{held_out}}}
""")
        run_recipe(load_recipe(recipe), Path(work) / "runs", in_process=True)


def run_trl(options: argparse.Namespace) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    def messages(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    case, folder = options.case, options.project
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = [
        {name: messages("user" if name == "prompt" else "assistant", text) for name, text in json.loads(line).items()}
        for line in (folder / f"{case}.jsonl").read_text().splitlines()
    ]
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": len(rows),
        "num_train_epochs": options.steps + 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": options.precision == "bfloat16",
        "use_cpu": options.device == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
    }
    auto = AutoModelForSequenceClassification if case == "reward_model" else AutoModelForCausalLM
    more = {"num_labels": 1} if case == "reward_model" else {}
    model = auto.from_pretrained(folder / "base", dtype="float32", **more)
    data = {"model": model, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    for trainer in (SFTTrainer, DPOTrainer, RewardTrainer):
        trainer._send_telemetry = lambda self: None
    if case == "sft":
        SFTTrainer(args=SFTConfig(**common, padding_free=options.side == "padding_free"), **data).train()
    elif case == "dpo":
        DPOTrainer(args=DPOConfig(**common, precompute_ref_log_probs=True), **data).train()
    else:
        RewardTrainer(args=RewardConfig(**common, center_rewards_coefficient=0.01), **data).train()


class Side:
    """A child process that takes a step whenever it is asked to."""

    def __init__(self, name: str, case: str, options: argparse.Namespace, project: Path) -> None:
        passed = {"case": case, "project": project, "side": name}
        passed |= {key: getattr(options, key) for key in ("threads", "steps", "precision", "device", "rows")}
        command = [sys.executable, __file__, *(part for key, value in passed.items() for part in (f"--{key}", str(value)))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        self.name, self.log = name, project / f"{case}-{name}.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.reports: list[dict[str, Any]] = []

    def step(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its log says why
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}:\n{self.log.read_text()[-3000:]}")
        self.reports.append(json.loads(line))

    def summary(self) -> dict[str, Any]:
        self._process.wait()
        seconds = [round(report["seconds"], 2) for report in self.reports[1:]]
        last = self.reports[-1]
        return {
            "seconds": seconds,
            "median_seconds": statistics.median(seconds),
            "peak_bytes": last["peak"],
            "growth_bytes": last["growth"],
        }


def compare(case: str, options: argparse.Namespace, project: Path) -> dict[str, Any]:
    """All sides; ratios are ours to TRL's faster layout."""
    names = ["align", *TRL_LAYOUTS[case]]
    if options.device == "cpu":
        sides = [Side(name, case, options, project) for name in names]
        for _ in range(options.steps + 1):
            for side in sides:
                side.step()
    else:
        sides = []
        for name in names:
            sides.append(side := Side(name, case, options, project))
            for _ in range(options.steps + 1):
                side.step()
    rows = make_rows(case, options.rows or ROWS[case])
    lengths = [[len(text) for text in row.values()] for row in rows]
    found = {side.name: side.summary() for side in sides}
    for name, summary in found.items():
        summary |= rates(case, options, lengths, summary["median_seconds"], shared_prompt=name == "align")
    ours, theirs = found.pop("align"), min(found.items(), key=lambda item: item[1]["median_seconds"])
    measures = {"time": "median_seconds", "memory_growth": "growth_bytes", "memory_peak": "peak_bytes"}
    ratios = {name: round(ours[key] / theirs[1][key], 3) for name, key in measures.items()}
    return {"case": case, "letters": lengths, "align": ours, "trl": found, "beside": theirs[0], "ratio": ratios}


def rates(
    case: str, options: argparse.Namespace, lengths: list[list[int]], seconds: float, *, shared_prompt: bool
) -> dict[str, float]:
    """Tokens per second, and MFU where the device's peak is known or can be measured."""

    tokens = sum(prompt + completion for prompt, *completions in lengths for completion in completions)
    rows = [(prompt, completions) for prompt, *completions in lengths]
    flops = training_flops(SHAPES[options.shape], rows, has_head=case != "reward_model", shared_prompt=shared_prompt)
    if options.device == "cuda":
        import torch

        peak = peak_flops(torch.cuda.get_device_name())
    else:
        peak = measured_matmul_flops() if options.precision == "float32" else None
    rate = {"tokens_per_second": round(tokens / seconds, 1)}
    return rate if peak is None else {**rate, "model_flop_utilisation": round(flops / seconds / peak, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(MEDIANS), help="default: all")
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--shape", choices=list(SHAPES), default=DEFAULT_SHAPE)
    parser.add_argument("--rows", type=int, default=0, help=f"rows or pairs in the batch, default: {ROWS}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (options.case,) = options.case
        run_side(options)
        return 0
    result: dict[str, Any] = {
        "command": shlex.join(["python", "scripts/benchmarks/real_shape.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)},
        "threads": options.threads,
        "precision": options.precision,
        "shape": options.shape,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as name:
        write_project(Path(name), options)
        for case in options.case or MEDIANS:
            result["cases"].append(found := compare(case, options, Path(name)))
            print(json.dumps(found), file=sys.stderr)
    if len(sys.argv) == 1:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    worst = max(value for case in result["cases"] for value in (case["ratio"]["time"], case["ratio"]["memory_peak"]))
    print(f"largest ratio {worst}, target {TARGET}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
