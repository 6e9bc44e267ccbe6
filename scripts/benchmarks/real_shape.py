#!/usr/bin/env python3
"""One optimizer step at the size of a real model, ours beside TRL's trainers: seconds and peak memory.

    .venv/bin/python scripts/benchmarks/real_shape.py [--case dpo] [--threads 2]
    .venv/bin/python scripts/benchmarks/real_shape.py --device cuda --precision bfloat16 --shape llama-3.2-1b --rows 32

A public model's shape with random weights, written as a folder that both sides read. All rows are one batch, so that every step
of either side sees the same rows; their lengths are in the result. Ours are the stages as a recipe runs them. TRL has the same
batch and arithmetic, its own AdamW and fused head, no gradient checkpointing (neither has ours), and for DPO its own precomputed
log-probabilities of the reference. For SFT its padding-free layout is run, which is faster than its padded one and takes less
memory; `--layout padded` shows that.

Each side is a process of its own. On a CPU they take steps in turn, so that what else runs on the machine slows both down; a GPU
has one side after the other. The first step of each is not counted. Memory on a CPU is the resident set: the largest during the
steps, and that less what was there before the first; on a GPU it is what torch has allocated. Tokens per second are of real
tokens, a prompt counted once for each completion; for MFU see align/testing/flops.py.

Without options it writes scripts/benchmarks/real_shape.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Any

from align.pipeline.estimate.speed import peak_flops
from align.runtime.process import send_output_to
from align.testing.flops import measured_matmul_flops, training_flops
from align.testing.project import write_jsonl
from align.testing.shapes import SHAPES, shaped_causal_lm

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

RESULT = Path(__file__).with_suffix(".json")
DEFAULT_SHAPE = "smollm2-135m"
# Median tokens of a prompt and of a completion; log-normal, as chats are. Templates add some tokens.
MEDIANS = {"sft": (80, 130), "dpo": (120, 60), "reward_model": (120, 60)}
SPREAD, MOST = 0.4, 900
ROWS = {"sft": 8, "dpo": 4, "reward_model": 4}
TRL_LAYOUTS = {"sft": ("padding_free",), "dpo": ("padded",), "reward_model": ("padded",)}
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

    def __init__(self, parent: Connection, options: argparse.Namespace) -> None:
        self._parent = parent
        self._left = options.steps + 1
        self._memory = GpuMemory() if options.device == "cuda" else ProcessMemory()
        self._before = 0
        self._started = self._started_cpu = 0.0

    def open(self) -> None:
        self._before = self._memory.start()
        self._wait()

    def step(self) -> None:
        peak = self._memory.peak()
        seconds, cpu_seconds = time.perf_counter() - self._started, time.process_time() - self._started_cpu
        self._parent.send({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak, "growth": peak - self._before})
        self._left -= 1
        if not self._left:
            os._exit(0)  # saving is not measured
        self._wait()

    def _wait(self) -> None:
        self._parent.recv()
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


def run_side(options: argparse.Namespace, parent: Connection, log: Path) -> None:
    """Train in this process; what it prints goes to `log`."""
    send_output_to(log)
    import torch
    import transformers.trainer
    from transformers import TrainerCallback

    torch.set_num_threads(options.threads)
    parent.send(measured_matmul_flops() if options.device == "cpu" else peak_flops(torch.cuda.get_device_name()))
    gate = Gate(parent, options)

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
    if case == "reward_model":
        import numpy as np

        from align.training.pairwise.rows import PairRows

        # Every pair is trained on, as TRL does; the stage ends before it measures accuracy.
        PairRows.held_out = lambda rows, **_: np.arange(len(rows.pairs))  # type: ignore[method-assign]
        PairRows.others = lambda rows, places: places  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as work:
        recipe = Path(work) / "recipe.yaml"
        recipe.write_text(f"""\
name: real-shape
inputs:
  base: {{kind: model, path: {folder / "base"}}}
  rows: {{kind: {kind}, path: {folder / f"{case}.jsonl"}}}
stages:
  it: {{stage: {case}, model: base, {rows}: rows, batch_size: {options.rows or ROWS[case]}, num_epochs: {options.steps + 1},
       lr_scheduler: constant, learning_rate: {LEARNING_RATE}, precision: {options.precision},
       gradient_checkpointing: false{", held_out_share: 0" if case == "dpo" else ""}}}
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
    """A process that takes a step whenever it is asked to."""

    def __init__(self, name: str, case: str, options: argparse.Namespace, project: Path) -> None:
        self.name, self.log = name, project / f"{case}-{name}.log"
        self._parent, child = context(options).Pipe()
        own = argparse.Namespace(**vars(options) | {"side": name, "case": case, "project": project})
        self._process = context(options).Process(target=run_side, args=(own, child, self.log))
        self._process.start()
        child.close()
        self.peak_flops = self._receive()
        self.reports: list[dict[str, Any]] = []

    def step(self) -> None:
        self._parent.send("go")
        self.reports.append(self._receive())

    def _receive(self) -> Any:
        try:
            return self._parent.recv()
        except EOFError:
            self._process.join()
            text = self.log.read_text()[-3000:]
            raise SystemExit(f"{self.name} ended with {self._process.exitcode}:\n{text}") from None

    def summary(self) -> dict[str, Any]:
        self._process.join()
        seconds = [round(report["seconds"], 2) for report in self.reports[1:]]
        last = self.reports[-1]
        return {
            "seconds": seconds,
            "cpu_seconds": [round(report["cpu_seconds"], 2) for report in self.reports[1:]],
            "median_seconds": statistics.median(report["seconds"] for report in self.reports[1:]),
            "peak_bytes": last["peak"],
            "growth_bytes": last["growth"],
        }


def context(options: argparse.Namespace) -> ForkContext | SpawnContext:
    """Forks on a CPU, so that everything is imported once; CUDA does not survive that."""
    return multiprocessing.get_context("fork") if options.device == "cpu" else multiprocessing.get_context("spawn")


def in_process(options: argparse.Namespace, run: Callable[..., None], *arguments: Any) -> None:
    """Run in a process of its own: threads that compute in this one would be missing in those that are forked."""
    process = context(options).Process(target=run, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{run.__name__} ended with {process.exitcode}")


def compare(case: str, options: argparse.Namespace, project: Path) -> dict[str, Any]:
    """All sides; ratios are ours to TRL's faster layout."""
    names = ["align", *(options.layout or TRL_LAYOUTS[case])]
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
        flops = training_flops(
            SHAPES[options.shape],
            [(prompt, completions) for prompt, *completions in lengths],
            has_head=case != "reward_model",
            shared_prompt=name == "align",
        )
        peak = next(side.peak_flops for side in sides if side.name == name)
        summary |= rates(lengths, flops, summary["median_seconds"], peak)
    ours, theirs = found.pop("align"), min(found.items(), key=lambda item: item[1]["median_seconds"])
    measures = {"time": "median_seconds", "memory_growth": "growth_bytes", "memory_peak": "peak_bytes"}
    ratios = {name: round(ours[key] / theirs[1][key], 3) for name, key in measures.items()}
    return {"case": case, "letters": lengths, "align": ours, "trl": found, "beside": theirs[0], "ratio": ratios}


def rates(lengths: list[list[int]], flops: float, seconds: float, peak: float | None) -> dict[str, float]:
    """Tokens per second, and MFU where the device's peak is known."""
    tokens = sum(prompt + completion for prompt, *completions in lengths for completion in completions)
    rate = {"tokens_per_second": round(tokens / seconds, 1)}
    return rate if peak is None else {**rate, "model_flop_utilisation": round(flops / seconds / peak, 3)}


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(MEDIANS), help="default: all")
    parser.add_argument("--steps", type=int, default=4, help="that are timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--shape", choices=list(SHAPES), default=DEFAULT_SHAPE)
    parser.add_argument("--rows", type=int, default=0, help=f"rows or pairs in the batch, default: {ROWS}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layout", action="append", choices=["padded", "padding_free"], help=f"of TRL, default: {TRL_LAYOUTS}")
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "scripts/benchmarks/real_shape.py", *arguments])
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All cases, each side in a process of its own."""
    result: dict[str, Any] = {
        "command": options.command,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)},
        "threads": options.threads,
        "precision": options.precision,
        "shape": options.shape,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as name:
        if options.device == "cpu":
            import align.pipeline.preload  # noqa: F401
        in_process(options, write_project, Path(name), options)
        for case in options.case or MEDIANS:
            result["cases"].append(found := compare(case, options, Path(name)))
            print(json.dumps(found), file=sys.stderr)
    return result


def main() -> int:
    result = measure(options_of(sys.argv[1:]))
    if len(sys.argv) == 1:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    worst = max(value for case in result["cases"] for value in (case["ratio"]["time"], case["ratio"]["memory_peak"]))
    print(f"largest ratio {worst}, target {TARGET}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
