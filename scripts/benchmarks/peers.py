#!/usr/bin/env python3
"""Whole commands, from a model's folder and rows to a trained model on disk: align against TRL in the same environment.

    .venv/bin/python scripts/benchmarks/peers.py [--rounds 3] [--out scripts/benchmarks/peers.json]

The quickstart's base model (1.9 million parameters) and its rows; both sides have the same rows, epochs, batch size and optimizer
steps.
Each side is a new process, in turn. align begins with an empty store. TRL's side is trl_job.py. Nothing else should run on the
machine; the load before the start is written down.

`bound` is what no program can go below that makes these steps with torch's products here: the operations of the model, forward
and backward, on real tokens (of pairs each prompt once, where TRL computes it twice), at the speed at which torch multiplies
matrices of the model's own shapes. `--bounds` adds it to the figures that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart"
MODEL = QUICKSTART / "base_model"
ALIGN = str(Path(sys.executable).parent / "align")
TRL_JOB = Path(__file__).with_name("trl_job.py")
MAX_TOKENS = 256
SIDES = ("align", "trl")


@dataclass(frozen=True)
class Training:
    """What both sides do."""

    method: str
    kind: str
    rows: int
    epochs: int
    batch_size: int
    learning_rate: float

    @property
    def steps(self) -> int:
        """Optimizer steps; the last of an epoch has the rows that are left."""
        return self.epochs * -(-self.rows // self.batch_size)


TRAININGS = (
    Training("sft", "instructions", rows=1500, epochs=2, batch_size=8, learning_rate=1e-3),
    Training("dpo", "preferences", rows=900, epochs=2, batch_size=16, learning_rate=2e-4),
    Training("reward_model", "preferences", rows=900, epochs=2, batch_size=16, learning_rate=5e-4),
)


def run(command: list[str]) -> tuple[float, str]:
    """Seconds of a whole command, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def by_align(training: Training, rows: Path, folder: Path) -> dict[str, float]:
    """Seconds of `align run` with a recipe of one stage, and of the training in it."""
    field = "pairs" if training.method == "dpo" else "data"
    # Packed rows would make fewer steps. A pair or two stay out of the training, which changes no number of steps: a reward model
    # needs some to say how good it is.
    more = "keep_epochs: none, packing: false" if training.method == "sft" else "held_out_share: 0.002"
    (folder / "recipe.yaml").write_text(
        f"name: peer\ninputs:\n  base: {{kind: model, path: {MODEL}}}\n  rows: {{kind: {training.kind}, path: {rows}}}\n"
        f"stages:\n  trained: {{stage: {training.method}, model: base, {field}: rows, num_epochs: {training.epochs}, "
        f"batch_size: {training.batch_size}, learning_rate: {training.learning_rate}, max_tokens: {MAX_TOKENS}, {more}}}\n"
    )
    seconds, _ = run([ALIGN, "run", str(folder / "recipe.yaml"), "--out", str(folder / "runs")])
    events = (folder / "runs" / "peer" / "events.jsonl").read_text().splitlines()
    (finished,) = (event for event in map(json.loads, events) if event["kind"] == "stage_finished")
    made = json.loads((folder / "runs" / "peer" / "stages" / "trained" / "manifest.json").read_text())
    steps = made["metrics"].get("steps", training.steps)
    if steps != training.steps:
        raise SystemExit(f"{training.method}: {steps} optimizer steps in place of {training.steps}")
    return {"seconds": seconds, "train_seconds": finished["phases"]["train"]}


def by_trl(training: Training, rows: Path, folder: Path) -> dict[str, float]:
    """Seconds of trl_job.py, and of the training in it."""
    arguments = {
        "epochs": training.epochs,
        "batch-size": training.batch_size,
        "learning-rate": training.learning_rate,
        "max-length": MAX_TOKENS,
    }
    options = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in arguments.items())
    seconds, output = run([sys.executable, str(TRL_JOB), training.method, str(MODEL), str(rows), str(folder / "trl"), *options])
    told = json.loads(output.strip().splitlines()[-1])
    if told["steps"] != training.steps:
        raise SystemExit(f"{training.method}: TRL made {told['steps']} optimizer steps in place of {training.steps}")
    return {"seconds": seconds, "train_seconds": told["train_seconds"]}


def measure(training: Training, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    source = (QUICKSTART / "data" / f"{training.kind}.jsonl").read_text(encoding="utf-8").splitlines()
    for _ in range(rounds):
        for side, by in (("align", by_align), ("trl", by_trl)):
            with tempfile.TemporaryDirectory(prefix="align-peers-") as name:
                rows = Path(name) / "rows.jsonl"
                rows.write_text("\n".join(source[: training.rows]) + "\n", encoding="utf-8")
                found[side].append(by(training, rows, Path(name)))
                print(training.method, side, found[side][-1], file=sys.stderr, flush=True)
    result: dict[str, Any] = {"rows": training.rows, "epochs": training.epochs, "batch_size": training.batch_size}
    result["steps"] = training.steps
    for what in ("seconds", "train_seconds"):
        medians = {side: median(each[what] for each in found[side]) for side in SIDES}
        result[what] = {side: round(value, 2) for side, value in medians.items()}
        result[what]["ratio"] = round(medians["align"] / medians["trl"], 3)
    return result


def bound(training: Training) -> dict[str, float]:
    """Seconds that the products of a training take at least, and what they follow from."""
    from align.models.chat_format import load_format
    from align.models.folder import ModelFolder
    from align.records import Message
    from align.testing.flops import measured_matmul_flops, training_flops

    chat_format, shape = load_format(ModelFolder(MODEL)), json.loads((MODEL / "config.json").read_text())
    lines = (QUICKSTART / "data" / f"{training.kind}.jsonl").read_text(encoding="utf-8").splitlines()[: training.rows]
    names = ("completion",) if training.method == "sft" else ("chosen", "rejected")
    rows = []
    for row in map(json.loads, lines):
        prompt = [Message(role="user", content=row["prompt"])]
        texts = chat_format.texts_of(prompt, {name: row[name] for name in names})
        first, *completions = map(len, chat_format.token_ids_of([texts])[0])
        rows.append((first, completions))
    has_head = training.method != "reward_model"
    flops = training.epochs * training_flops(shape, rows, has_head=has_head, shared_prompt=training.method != "sft")
    if training.method == "dpo":  # the reference is a forward pass, a third of a step, over all rows once
        flops *= 1 + 1 / 3 / training.epochs
    tokens = training.batch_size * sum(first + sum(others) for first, others in rows) // len(rows)
    speed = measured_matmul_flops(tokens, shape["hidden_size"], shape["intermediate_size"], repeats=200)
    return {"gflop": round(flops / 1e9, 1), "gflop_per_second": round(speed / 1e9, 1), "seconds": round(flops / speed, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=[training.method for training in TRAININGS])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("peers.json"))
    parser.add_argument("--bounds", action="store_true", help="measure only those, and add them")
    options = parser.parse_args()
    if options.bounds:
        result = json.loads(options.out.read_text())
        for training in TRAININGS:
            if found := result["trainings"].get(training.method):
                found["bound"] = bound(training)
                found["bound"]["ratio"] = round(found["bound"]["seconds"] / found["train_seconds"]["trl"], 3)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result["trainings"], indent=2))
        return
    load = os.getloadavg()[0]
    chosen = [training for training in TRAININGS if options.only in (None, training.method)]
    result = {
        "command": f"python scripts/benchmarks/peers.py --rounds {options.rounds}",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(load, 2)},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "trainings": {training.method: measure(training, options.rounds) for training in chosen},
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["trainings"], indent=2))


if __name__ == "__main__":
    main()
