"""Shipped recipes at reduced size, run as a newcomer runs them: copied, then run by the command line to their table.

The command line is called in this process: a new one would import everything again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from align.cli.main import main
from align.report.results import Results
from align.testing.reduced import overrides, reduced, shrink

RECIPES = Path(__file__).parents[2] / "recipes"


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
