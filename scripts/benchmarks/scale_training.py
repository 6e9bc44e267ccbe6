"""How much faster a training step is with several processes: DDP and FSDP2 beside one process, with one thread and with all.

    python scripts/benchmarks/scale_training.py [--processes 2]

A Llama of 13 million parameters is fine-tuned on rows of 128 random tokens, 8 to a batch, in float32 on the CPU. Each of several
processes has one thread. Ways take turns, round after round, so that all of them see the same machine. Seconds are medians over
the steps of all rounds without the first two of each. Writes scripts/benchmarks/scale_training.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
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
from align.training.loop import train, training_arguments
from align.training.packing import TrainingSample, build_row
from align.training.sharding import shard
from align.training.trl_trainers import sft_trainer

RESULT = Path(__file__).with_suffix(".json")
STEPS, LEFT_OUT, ROUNDS = 8, 2, 3
BATCH, TOKENS = 8, 128
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    count = options.processes
    ways = {
        "1 process, 1 thread": (Spread(1, "ddp"), 1),
        f"1 process, {cores} threads": (Spread(1, "ddp"), cores),
        f"{count} processes, ddp": (Spread(count, "ddp"), 1),
        f"{count} processes, fsdp2": (Spread(count, "fsdp2"), 1),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        tiny_causal_lm(base, texts=["hello"])
        for number in range(ROUNDS):
            for way, (spread, threads) in ways.items():
                seconds[way] += measured(base, Path(name) / f"{number}-{len(seconds)}-{way}", spread, threads)
                print(f"round {number + 1}, {way}: {statistics.median(seconds[way]):.3f} s a step", flush=True)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    slowest = medians["1 process, 1 thread"]
    ways_found = {way: {"step_seconds": round(value, 4), "speed_up": round(slowest / value, 3)} for way, value in medians.items()}
    load = [round(value, 2) for value in os.getloadavg()]
    machine = {"load": load, "cores": cores, "python": platform.python_version(), "torch": torch.__version__}
    job = {**SHAPE, "batch_size": BATCH, "tokens": TOKENS, "steps": (STEPS - LEFT_OUT) * ROUNDS}
    write_json(RESULT, {"machine": machine, "job": job, "ways": ways_found})


if __name__ == "__main__":
    main()
