"""Shipped recipes at reduced size, run as a newcomer runs them: copied, then run by the command line to their table.

The command line is called in this process: a new one would import everything again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from align.cli.main import main
from align.report.results import Results

RECIPES = Path(__file__).parents[2] / "recipes"


def reduced(name: str, folder: Path, **sizes: int) -> Path:
    """A copy of a recipe with the first rows of each file: how many, by the file's name."""
    assert main(["recipes", "copy", name, str(folder)]) == 0
    for kind, size in sizes.items():
        (path,) = folder.glob(f"**/{kind}.jsonl")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:size]))
    for retention in folder.glob("**/retention.txt"):
        retention.write_text("".join(retention.read_text().splitlines(keepends=True)[:20]))
    return folder


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def run_small(name: str, folder: Path, runs: Path, *settings: str, options: Sequence[str] = ()) -> Results:
    """Run a recipe as small as it gets, its stages in this process too, where tests can leave out what they do not look at."""
    sizes = {"instructions": 48, "preferences": 60, "prompts": 12, "validation": 4, "held_out": 6}
    recipe = reduced(name, folder / name, **sizes)
    (base,) = recipe.glob("**/base_model")
    shrink(base)
    common = ["stages.sft.num_epochs=1", *(f"stages.{stage}.max_completion_tokens=16" for stage in ("sft_best", "compare"))]
    engines = [f"stages.{stage}.engine=transformers" for stage in ("sft_best", "compare")]
    common += ["stages.compare.num_candidates=1", "stages.compare.bootstrap_resamples=1000"]
    command = ["run", str(recipe), "--out", str(runs), "--in-process", *options]
    assert main([*command, *overrides(*common, *engines, *settings)]) == 0
    return Results.from_json(json.loads((runs / name / "results.json").read_text()))


def shrink(base: Path) -> None:
    """Put a small random model in the base model's place, for tests that do not look at what it says. The tokenizer stays."""
    config = AutoConfig.from_pretrained(base)
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32})
    config.update({"num_attention_heads": 1, "num_key_value_heads": 1, "initializer_range": 0.1})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
