#!/usr/bin/env python3
"""Measure a comparison from an empty store, with one model more, and with another option, one after the other.

    .venv/bin/python scripts/benchmarks/compare_again.py [--rounds 1] [--out scripts/benchmarks/compare_again.json]

Random Llamas of 3 million parameters answer prompts four times each; rules score the answers, and likelihoods are read. Times are
of the comparison alone, from the start of its process. There is no reward model: one that no training used is also searched for
answers that fool it, among those of all models, whenever there is another model. Ratios are of medians over rounds, each of which
has stores of its own.
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
from pathlib import Path
from typing import Any

from align.testing.tiny import tiny_causal_lm

ALIGN = str(Path(sys.executable).parent / "align")
MODELS = ("first", "second", "third", "fourth")
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "initializer_range": 0.02,
}
WORDS = "a model that answers prompts about trains, keys, cups and rain, in a sentence or two"
RECIPE = """\
name: again
seed: 3
inputs:
{inputs}
  held_out:  {{kind: prompts, path: held_out.jsonl}}
  retention: {{kind: text, path: retention.txt}}
stages:
  compare: {{stage: compare, models: [{models}], baseline: first, prompts: held_out, retention: retention,
            num_candidates: 4, max_completion_tokens: 96, max_prompt_tokens: 192,
            scorers: {{gold: {{rules: [{{type: length, name: short, max_words: 30}}]}}}}}}
"""


def write_project(folder: Path) -> None:
    """The models, the data, and one recipe with three models and one with four."""
    for seed, name in enumerate(MODELS):
        tiny_causal_lm(folder / name, texts=[WORDS] * 4, seed=seed, **SHAPE)
    rows = ({"id": f"h{number}", "prompt": f"Number {number}: {WORDS}."} for number in range(128))
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "retention.txt").write_text("".join(f"{number} {WORDS}\n" for number in range(96)))
    inputs = "\n".join(f"  {name}: {{kind: model, path: {name}}}" for name in MODELS)
    for count in (3, 4):
        (folder / f"{count}.yaml").write_text(RECIPE.format(inputs=inputs, models=", ".join(MODELS[:count])))


def timed(recipe: Path, out: Path, *options: str) -> float:
    """Seconds of the comparison in a run."""
    # Both recipes are one that was edited: its run would otherwise refuse the other file.
    edited = recipe.with_name("recipe.yaml")
    edited.write_text(recipe.read_text())
    command = [ALIGN, "run", str(edited), "--out", str(out), "--json", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (stage,) = (stage for stage in json.loads(done.stdout)["stages"] if stage["name"] == "compare")
    return round(float(sum(stage["phases"].values())), 3)


def measure(project: Path, out: Path) -> dict[str, float]:
    """One round: seconds by what was run."""
    fewer, all_models = project / "3.yaml", project / "4.yaml"
    found = {"three models, empty store": timed(fewer, out / "kept")}
    found["a fourth model added"] = timed(all_models, out / "kept")
    found["another option"] = timed(all_models, out / "kept", "--set", "stages.compare.bootstrap_resamples=9000")
    found["four models, empty store"] = timed(all_models, out / "empty")
    first, second = ((out / name / "again" / "stages" / "compare") for name in ("kept", "empty"))
    for model in MODELS:
        name = f"answers/{model}.jsonl"
        if (first / name).read_bytes() != (second / name).read_bytes():
            raise SystemExit(f"{name} differs between the two stores")
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder))
        for number in range(arguments.rounds):
            rounds.append(measure(Path(folder), Path(folder) / f"round-{number}"))
            print(rounds[-1], flush=True)
    seconds = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    whole = seconds["four models, empty store"]
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "rounds": rounds,
        "seconds": seconds,
        "of_an_empty_store": {name: round(value / whole, 3) for name, value in seconds.items()},
    }
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
