"""Estimated against measured peak memory of training stages, on a CPU.

    python scripts/benchmarks/memory.py

Random Llamas, rows of random lengths, two to seven steps. Every stage runs as `align run` runs it, in a worker of its own, whose
largest resident set is measured, of several that train together that of the largest; the estimate is the one that `align plan`
printed before. Writes scripts/benchmarks/memory.json; docs/memory.md has the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align import load_recipe, run_recipe
from align.config.machine_file import read_machine_settings
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.plan import make_plan
from align.store.artifact import Entry
from align.store.atomic import write_json
from align.testing.project import write_jsonl
from align.testing.tiny import tiny_causal_lm, tiny_reward_model

RESULT = Path(__file__).with_suffix(".json")
LARGEST_DEVIATION = 0.2

Rows = list[dict[str, str]]
SHAPES: dict[str, dict[str, Any]] = {
    "56 M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8,
             "num_key_value_heads": 8, "vocab_size": 8192},
    "11 M, 16 k tokens": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4,
                          "num_key_value_heads": 4, "vocab_size": 16384},
    "39 M, 16 k tokens, grouped keys": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
                                        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 16384,
                                        "tie_word_embeddings": False},
}  # fmt: skip
COMMON = {"head_dim": 64, "max_position_embeddings": 4096, "initializer_range": 0.02}


def instructions(count: int, prompt: int, completion: int) -> Rows:
    """Up to so many letters each, a quarter at least; the tokenizer makes a token of every letter."""
    draw = random.Random(count)
    return [
        {
            "prompt": f"{row} " + "a" * draw.randint(prompt // 4, prompt),
            "completion": "b" * draw.randint(completion // 4, completion),
        }
        for row in range(count)
    ]


def preferences(count: int, prompt: int, completion: int) -> Rows:
    rows = zip(instructions(count, prompt, completion), instructions(count + 1, prompt, completion), strict=False)
    return [{"prompt": a["prompt"], "chosen": a["completion"], "rejected": "c" + b["completion"]} for a, b in rows]


def prompts(count: int, prompt: int, completion: int) -> Rows:
    rows = instructions(count, prompt, completion)
    return [{"id": f"p{number}", "prompt": row["prompt"]} for number, row in enumerate(rows)]


MAKERS: dict[str, Callable[[int, int, int], Rows]] = {
    "instructions": instructions,
    "preferences": preferences,
    "prompts": prompts,
}


@dataclass(frozen=True)
class Configuration:
    """One stage of a recipe, its model and its data."""

    name: str
    shape: str
    kind: str
    """Of the data."""
    rows: tuple[int, int, int]
    """How many, and letters of the longest prompt and completion."""
    stage: str
    """As in a recipe."""
    processes: int = 1
    strategy: str = "single"

    @property
    def machine(self) -> dict[str, Any]:
        """The machine file."""
        return {"training": {"processes": self.processes, "strategy": self.strategy}}


PAIRS = "max_tokens: 256, batch_size: 8, micro_batch_size: 4"
CONFIGURATIONS = (
    Configuration(
        "sft", "56 M", "instructions", (28, 150, 200),
        "{stage: sft, model: base, data: data, max_tokens: 512, batch_size: 4, micro_batch_size: 2}",
    ),
    Configuration(
        "sft, rows of 4096 tokens", "11 M, 16 k tokens", "instructions", (12, 500, 2000),
        "{stage: sft, model: base, data: data, max_tokens: 4096, batch_size: 2, micro_batch_size: 1}",
    ),
    Configuration(
        "sft, LoRA", "56 M", "instructions", (28, 150, 200),
        "{stage: sft, model: base, data: data, max_tokens: 512, batch_size: 4, micro_batch_size: 2, peft: {method: lora}}",
    ),
    Configuration(
        "dpo", "56 M", "preferences", (16, 100, 120), f"{{stage: dpo, model: base, pairs: data, {PAIRS}}}",
    ),
    Configuration(
        "dpo, three epochs", "56 M", "preferences", (16, 100, 120),
        f"{{stage: dpo, model: base, pairs: data, num_epochs: 3, {PAIRS}}}",
    ),
    Configuration(
        "dpo, QLoRA", "56 M", "preferences", (16, 100, 120),
        f"{{stage: dpo, model: base, pairs: data, {PAIRS}, peft: {{method: qlora}}}}",
    ),
    Configuration(
        "reward_model", "56 M", "preferences", (24, 100, 120), f"{{stage: reward_model, model: base, data: data, {PAIRS}}}",
    ),
    Configuration(
        "orpo", "39 M, 16 k tokens, grouped keys", "preferences", (16, 100, 120),
        "{stage: orpo, model: base, pairs: data, max_tokens: 256, batch_size: 8}",
    ),
    Configuration(
        "ppo", "39 M, 16 k tokens, grouped keys", "prompts", (32, 60, 60),
        "{stage: ppo, model: base, prompts: data, scorers: {rm: reward}, num_episodes: 32, rollout_batch_size: 16, "
        "mini_batch_size: 8, ppo_epochs: 1, micro_batch_tokens: 1024, max_completion_tokens: 64, max_prompt_tokens: 128}",
    ),
    Configuration(
        "distill", "39 M, 16 k tokens, grouped keys", "prompts", (32, 60, 60),
        "{stage: distill, model: base, teacher: teacher, prompts: data, beta: 0.5, engine: transformers, "
        "num_episodes: 32, rollout_batch_size: 16, mini_batch_size: 8, micro_batch_tokens: 1024, max_completion_tokens: 64, "
        "max_prompt_tokens: 128}",
    ),
    *(
        Configuration(f"{name}, {processes} processes, {strategy}", "56 M", kind, rows, stage, processes, strategy)
        for name, kind, rows, stage in (
            ("sft", "instructions", (14, 150, 200),
             "{stage: sft, model: base, data: data, max_tokens: 512, batch_size: 4, micro_batch_size: 1}"),
            # In two steps, a process may never meet the largest pass while its optimizer has moments; in six it does.
            ("dpo, three epochs", "preferences", (16, 100, 120),
             f"{{stage: dpo, model: base, pairs: data, num_epochs: 3, {PAIRS}}}"),
        )
        for processes in (2, 4)
        for strategy in ("ddp", "fsdp2")
    ),
)  # fmt: skip


def write_project(configuration: Configuration, folder: Path) -> Path:
    """Models, data and recipe of a configuration; the path of the recipe."""
    shape = COMMON | SHAPES[configuration.shape]
    inputs = ["base: {kind: model, path: base}", f"data: {{kind: {configuration.kind}, path: data.jsonl}}"]
    tiny_causal_lm(folder / "base", **shape)
    if "rm: reward" in configuration.stage:
        tiny_reward_model(folder / "reward", **shape)
        inputs.append("reward: {kind: reward_model, path: reward}")
    if "teacher: teacher" in configuration.stage:
        tiny_causal_lm(folder / "teacher", seed=1, **shape)
        inputs.append("teacher: {kind: model, path: teacher}")
    write_jsonl(folder / "data.jsonl", MAKERS[configuration.kind](*configuration.rows))
    recipe = folder / "recipe.yaml"
    lines = ["name: memory", "inputs:", *(f"  {line}" for line in inputs), "stages:", f"  it: {configuration.stage}"]
    recipe.write_text("\n".join(lines) + "\n")
    return recipe


def measure(configuration: Configuration) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = load_recipe(write_project(configuration, folder))
        machine_file = read_machine_settings(configuration.machine, folder, {})
        (stage,) = estimate_plan(make_plan(recipe, folder / "runs", machine_file=machine_file)).stages
        estimate = stage.of_recipe
        if estimate is None:
            raise SystemExit(f"{configuration.name}: no estimate")
        started = time.perf_counter()
        result = run_recipe(recipe, folder / "runs", machine=configuration.machine)
        manifest = Entry(result.folder / "stages" / "it").read_manifest()
        if manifest is None:
            raise SystemExit(f"{configuration.name}: no manifest")
    return {
        **asdict(configuration),
        "trainable_parameters": estimate.trainable_parameters,
        "estimated_bytes": estimate.memory.peak,
        "measured_bytes": manifest.peak_memory_bytes,
        "ratio": round(estimate.memory.peak / manifest.peak_memory_bytes, 3),
        "parts": asdict(estimate.memory),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of configurations; the figures of the others stay as they are")
    options = parser.parse_args()
    measured = []
    for configuration in CONFIGURATIONS:
        if options.only and configuration.name not in options.only:
            continue
        row = measure(configuration)
        measured.append(row)
        sizes = f"estimated {row['estimated_bytes'] / 1e9:.2f} GB, measured {row['measured_bytes'] / 1e9:.2f} GB"
        print(f"{row['name']}: {sizes}, ratio {row['ratio']:.2f}, {row['seconds']:.0f} s", flush=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    if options.only:
        before = json.loads(RESULT.read_bytes())
        if before["machine"] != machine:
            raise SystemExit(f"not written: the other figures are of another machine, {before['machine']}, this one is {machine}")
        new = {row["name"]: row for row in [*before["configurations"], *measured]}
        measured = [new[configuration.name] for configuration in CONFIGURATIONS if configuration.name in new]
    largest_deviation = round(max(abs(row["ratio"] - 1) for row in measured), 3)
    command = f"python scripts/benchmarks/{Path(__file__).name}"
    result = {"command": command, "machine": machine, "largest_deviation": largest_deviation, "configurations": measured}
    write_json(RESULT, result)
    print(json.dumps({"largest_deviation": largest_deviation}))
    if any(abs(row["ratio"] - 1) > LARGEST_DEVIATION for row in measured):
        raise SystemExit(f"an estimate is more than {LARGEST_DEVIATION:.0%} off")


if __name__ == "__main__":
    main()
