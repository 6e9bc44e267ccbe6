"""Memory in which the processes of fsdp2 load a model: all of them read it, or the first does and sends the others their parts.

    python scripts/benchmarks/fsdp2_loading.py

A Llama of 110 million parameters in bfloat16, as models come, is loaded as trainings load it, in float32 (420 MiB), and divided.
Counted is what each process needs at most besides what it had before: its private memory, and all of it, which includes pages of
the model's file. Writes scripts/benchmarks/fsdp2_loading.json; docs/scale.md has the figures.
"""

from __future__ import annotations

import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from align.models.load import load_causal_lm
from align.runtime.group import all_of, wait_for_all
from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import Spread
from align.store.atomic import write_json
from align.testing import tiny_causal_lm
from align.training.sharding import shard
from align.training.weights_of_first import weights_of_first

RESULT = Path(__file__).with_suffix(".json")
SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "vocab_size": 16384,
    "tie_word_embeddings": False,
}


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if rest.endswith("kB")}


def load(_: Rank, *, base: Path, spread: Spread, all_read: bool) -> list[dict[str, int]]:
    """MiB that each process needed at most."""
    torch.zeros(1)
    wait_for_all()
    before = highest = memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = {name: max(value, highest[name]) for name, value in memory().items()}
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with weights_of_first(spread, all_read=all_read):
        model = load_causal_lm(base)
    shard(model, spread)
    done.set()
    watcher.join()
    needed = {"private": highest["RssAnon"] - before["RssAnon"], "all": highest["VmRSS"] - before["VmRSS"]}
    return all_of({name: value >> 20 for name, value in needed.items()})


def main() -> None:
    found = []
    with tempfile.TemporaryDirectory() as name:
        base, file = Path(name) / "base", Path(name) / "base" / "model.safetensors"
        tiny_causal_lm(base, texts=["hello"], **SHAPE)
        save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
        for processes in (1, 2, 4):
            for all_read in (True, False):
                spread, folder = Spread(processes, "fsdp2"), Path(name) / f"{processes} {all_read}"
                work: Any = partial(load, base=base, spread=spread, all_read=all_read)
                parts = run_ranks(work, spread, folder=folder, emit=lambda event: None, stop_requested=lambda: None).value
                sums = {key: sum(part[key] for part in parts) for key in ("private", "all")}
                found.append({"processes": processes, "reads": "all" if all_read else "first", "mib": parts, "sum_mib": sums})
                print(found[-1], flush=True)
    write_json(RESULT, {"command": f"python scripts/benchmarks/{Path(__file__).name}", "shape": SHAPE, "loadings": found})


if __name__ == "__main__":
    main()
