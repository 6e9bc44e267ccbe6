"""Shipped recipes at reduced size, run as a newcomer runs them: copied, then run by the command line to their table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from align.report.results import Results

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {"instructions": 160, "preferences": 200, "prompts": 48, "validation": 16, "held_out": 40}


def reduced(name: str, folder: Path, **sizes: int) -> Path:
    """A copy of a recipe with the first rows of each file."""
    assert align("recipes", "copy", name, str(folder)).returncode == 0
    for kind, size in {**SIZES, **sizes}.items():
        (path,) = folder.glob(f"**/{kind}.jsonl")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:size]))
    for retention in folder.glob("**/retention.txt"):
        retention.write_text("".join(retention.read_text().splitlines(keepends=True)[:20]))
    return folder


def align(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "align.cli.main", *arguments], capture_output=True, text=True, check=False)


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def run_small(name: str, tmp_path: Path, *settings: str) -> Results:
    sizes = {"instructions": 48, "preferences": 60, "prompts": 12, "validation": 4, "held_out": 6}
    recipe = reduced(name, tmp_path / "mine", **sizes)
    common = ["stages.sft.num_epochs=1", *(f"stages.{stage}.max_completion_tokens=16" for stage in ("sft_best", "compare"))]
    engines = [f"stages.{stage}.engine=transformers" for stage in ("sft_best", "compare")]
    common += ["stages.compare.num_candidates=1", "stages.compare.bootstrap_resamples=1000"]
    done = align("run", str(recipe), "--out", str(tmp_path), *overrides(*common, *engines, *settings))
    assert done.returncode == 0, done.stderr
    return Results.from_json(json.loads((tmp_path / name / "results.json").read_text()))
