"""How much slower training and sampling become when another process takes a core, by what waiting threads do.

    python scripts/benchmarks/busy_machine.py

`torch` leaves the threads as torch has them, `align` sets what `align.runtime.threads` chooses. Each measurement is a process
of its own with a thread for every core: optimizer steps of a Llama of 2 million parameters (16 rows of 128 tokens), or 256
completions of 64 tokens by vLLM. The two take turns, alone and beside processes that only count, on half of the cores. A
measurement that takes longer than LIMIT_SECONDS is given up and counts as what it had done by then. Writes busy_machine.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from align.runtime.threads import thread_environment
from align.store.atomic import write_json

RESULT = Path(__file__).with_suffix(".json")
TASKS = ("train", "sample")
POLICIES = ("torch", "align")
REPEATS = 2
STEPS = 10
BATCHES = 3
LIMIT_SECONDS = 60.0
SHAPE = {
    "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def train() -> Iterator[float]:
    """Seconds of each optimizer step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = torch.randint(0, SHAPE["vocab_size"], (16, 128))
    for _ in range(STEPS):
        started = time.perf_counter()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield time.perf_counter() - started


def sample(folder: Path) -> Iterator[float]:
    """Seconds of each batch."""
    from align.engines.open import open_engine
    from align.engines.protocol import GenerationRequest, SamplingSettings
    from align.models.folder import ModelFolder
    from align.testing.tiny import tiny_causal_lm

    model = tiny_causal_lm(folder / "model")
    engine = open_engine("vllm", ModelFolder(model), dtype="float32", max_model_tokens=128)
    settings = SamplingSettings(
        temperature=1.0, top_p=1.0, top_k=None, max_completion_tokens=64, num_candidates=4, stop_token_ids=()
    )
    requests = [GenerationRequest([100 + (number * 7 + place) % 90 for place in range(30)], number) for number in range(64)]
    for _ in range(BATCHES):
        started = time.perf_counter()
        engine.generate(requests, settings)
        yield time.perf_counter() - started


def child(task: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seconds in train() if task == "train" else sample(Path(folder)):
            print(json.dumps(seconds), flush=True)
    os._exit(0)  # vLLM may hang in its own exit handlers


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    counters = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for counter in counters:
            counter.kill()
            counter.wait()


def measure(task: str, policy: str, cores: int) -> float:
    """Seconds of a step or batch, the first left out."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = {**own, "OMP_NUM_THREADS": str(cores)} | (thread_environment(own) if policy == "align" else {})
    command = [sys.executable, __file__, "--child", task]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    started = time.monotonic()
    try:
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    seconds = [float(line) for line in output.splitlines() if line[:1].isdigit()]
    # What did not end in time took at least that long.
    return median(seconds[1:]) if len(seconds) > 2 else (time.monotonic() - started) / max(1, len(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
    cores = len(os.sched_getaffinity(0))
    measured: dict[str, Any] = {}
    for task in TASKS:
        for taken in (0, max(1, cores // 2)):
            with busy_cores(taken):
                runs = [{policy: measure(task, policy, cores) for policy in POLICIES} for _ in range(REPEATS)]
            where = "alone" if not taken else f"beside {taken} busy of {cores} cores"
            measured.setdefault(task, {})[where] = {policy: median(run[policy] for run in runs) for policy in POLICIES}
            print(task, where, measured[task][where], flush=True)
    for task, by_place in measured.items():
        alone, busy = by_place.values()
        measured[task]["slower beside it"] = {policy: busy[policy] / alone[policy] for policy in POLICIES}
        measured[task]["alone, align / torch"] = alone["align"] / alone["torch"]
    write_json(RESULT, {"machine": {"cores": cores, "processor": platform.processor()}, "seconds": measured})
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
