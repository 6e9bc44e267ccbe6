"""How much faster one machine is with several processes: a training step with DDP and FSDP2, and sampling with several engines.

    python scripts/benchmarks/scale_processes.py [--processes 2] [--parts training sampling]

Training: a Llama of 13 million parameters is fine-tuned on rows of 128 random tokens, 8 to a batch, in float32 on the CPU. Each
of several processes has one thread. Ways take turns, round after round, so that all of them see the same machine. Seconds are
medians over the steps of all rounds without the first two of each.

Sampling: `align run` with a recipe of one `generate` stage, by one vLLM and by as many as there are processes, in turn; each has
its part of the threads. Seconds are those of the many prompts less those of the few, so that no start is in them. Writes
scripts/benchmarks/scale_processes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from align.config.sections import Optimization
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import Spread
from align.store.atomic import write_json
from align.testing import run_context, tiny_causal_lm
from align.testing.project import write_jsonl
from align.training.loop import train, training_arguments
from align.training.packing import TrainingSample, build_row
from align.training.sharding import shard
from align.training.trl_trainers import sft_trainer

RESULT = Path(__file__).with_suffix(".json")
STEPS, LEFT_OUT, ROUNDS = 8, 2, 3
BATCH, TOKENS = 8, 128
MODEL = Path(__file__).resolve().parents[2] / "recipes" / "quickstart" / "base_model"
PROMPTS, CANDIDATES, COMPLETION = (64, 640), 4, 48
SHAPE = {
    "vocab_size": 8000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def steps_of(rank: Rank, *, base: Path, work: Path, spread: Spread, threads: int) -> list[float]:
    """Seconds of the steps that count, in rank 0."""
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    work.mkdir(parents=True, exist_ok=True)
    context = run_context(work, rank=rank.number, spread=spread)
    config = Optimization(precision="float32", batch_size=BATCH, micro_batch_size=2)
    tokens = torch.randint(5, SHAPE["vocab_size"], (BATCH * STEPS, TOKENS)).tolist()
    rows = [build_row([TrainingSample(row[:32], row[32:])]) for row in tokens]
    model = shard(LlamaForCausalLM(LlamaConfig(**SHAPE)), spread)  # type: ignore[arg-type]
    arguments = training_arguments(config, context, num_rows=len(rows))
    trainer, clock = sft_trainer(model, load_format(ModelFolder(base)), rows, arguments), Clock()
    trainer.add_callback(clock)
    train(trainer, context)
    return clock.seconds[LEFT_OUT:]


def measured(base: Path, folder: Path, spread: Spread, threads: int) -> list[float]:
    work = partial(steps_of, base=base, work=folder / "work", spread=spread, threads=threads)
    return run_ranks(work, spread, folder=folder / "ranks", emit=lambda event: None, stop_requested=lambda: None).value


def train_all(count: int, cores: int, folder: Path) -> dict[str, Any]:
    """Seconds of a step in each way, and how much faster that is than one process with one thread."""
    ways = {
        "1 process, 1 thread": (Spread(1, "ddp"), 1),
        f"1 process, {cores} threads": (Spread(1, "ddp"), cores),
        f"{count} processes, ddp": (Spread(count, "ddp"), 1),
        f"{count} processes, fsdp2": (Spread(count, "fsdp2"), 1),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    base = folder / "base"
    tiny_causal_lm(base, texts=["hello"])
    for number in range(ROUNDS):
        for way, (spread, threads) in ways.items():
            seconds[way] += measured(base, folder / f"{number}-{way}", spread, threads)
            print(f"round {number + 1}, {way}: {statistics.median(seconds[way]):.3f} s a step", flush=True)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    slowest = medians["1 process, 1 thread"]
    found = {way: {"step_seconds": round(value, 4), "speed_up": round(slowest / value, 3)} for way, value in medians.items()}
    job = {**SHAPE, "batch_size": BATCH, "tokens": TOKENS, "steps": (STEPS - LEFT_OUT) * ROUNDS}
    return {"job": job, "ways": found}


def sample_once(folder: Path, prompts: int, engines: int) -> float:
    """Seconds of a generate stage."""
    folder.mkdir()
    rows = ({"id": f"p{number}", "prompt": f"Question {number}: what is it?"} for number in range(prompts))
    write_jsonl(folder / "prompts.jsonl", rows)
    (folder / "machine.yaml").write_text(f"sampling: {{engines: {engines}}}\n")
    (folder / "recipe.yaml").write_text(
        f"name: sampling\ninputs:\n  base: {{kind: model, path: {MODEL}}}\n  prompts: {{kind: prompts, path: prompts.jsonl}}\n"
        f"stages:\n  sampled: {{stage: generate, model: base, prompts: prompts, num_candidates: {CANDIDATES}, engine: vllm, "
        f"max_completion_tokens: {COMPLETION}, shard_prompts: 32}}\n"
    )
    command = [sys.executable, "-m", "align.cli.main", "run", "recipe.yaml", "--out", "runs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    made = json.loads((folder / "runs" / "sampling" / "stages" / "sampled" / "manifest.json").read_text())
    return float(made["seconds"])


def sample_all(count: int, _: int, folder: Path) -> dict[str, Any]:
    """Completions per second by one engine and by several."""
    seconds: dict[int, list[float]] = {1: [], count: []}
    for number in range(ROUNDS):
        for engines, values in seconds.items():
            few, many = (sample_once(folder / f"{number}-{engines}-{prompts}", prompts, engines) for prompts in PROMPTS)
            values.append(many - few)
            print(f"round {number + 1}, engines: {engines}, {values[-1]:.1f} s", flush=True)
    rates = {engines: (PROMPTS[1] - PROMPTS[0]) * CANDIDATES / statistics.median(values) for engines, values in seconds.items()}
    ways = {
        f"engines: {engines}": {"completions_per_second": round(rate, 1), "speed_up": round(rate / rates[1], 3)}
        for engines, rate in rates.items()
    }
    job = {"model": "recipes/quickstart/base_model", "prompts": PROMPTS, "candidates": CANDIDATES, "tokens": COMPLETION}
    return {"job": job, "ways": ways}


PARTS = {"training": train_all, "sampling": sample_all}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found["command"] = "python scripts/benchmarks/scale_processes.py"
    for part in options.parts:
        load = [round(value, 2) for value in os.getloadavg()]
        machine = {"load_before": load, "cores": cores, "python": platform.python_version(), "torch": torch.__version__}
        with tempfile.TemporaryDirectory() as name:
            by = PARTS[part](options.processes, cores, Path(name))
        found[part] = {"machine": machine, **by}
        write_json(RESULT, found)


if __name__ == "__main__":
    main()
