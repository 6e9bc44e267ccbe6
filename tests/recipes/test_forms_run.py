"""Rounds and seeds, run to the end on the tiny project: every model is there, and in the comparison under its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe, run_recipe

pytestmark = pytest.mark.slow

STAGES = """\
  iterated:
    rounds: 2
    model: sft
    reference: first
    generate: {prompts: [prompts, held_out], num_candidates: 3, max_completion_tokens: 8, max_prompt_tokens: 96,
               engine: transformers}
    score: {scorers: {rm: reward}}
    pairs: {scorer: rm, policy: rso, keep_truncated: true}
    dpo: {learning_rate: 1e-3, batch_size: 4, max_tokens: 128}
"""


@pytest.fixture(scope="module")
def finished(project_template: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder; must not be written to. Its store has what the recipe without the forms made."""
    project = Path(shutil.copytree(project_template, tmp_path_factory.mktemp("forms") / "project"))
    recipe = project / "recipe.yaml"
    text = recipe.read_text().replace("models: [sft, rs, dpo]", "models: [sft, rs, iterated]")
    text = text.replace("data: best,", "data: best, seeds: [5, 6],")
    recipe.write_text(text.replace("  compare:", STAGES + "  compare:"))
    out = project.parent / "runs"
    shutil.copytree(finished_run.parent / ".store", out / ".store", symlinks=True)
    return run_recipe(load_recipe(recipe), out, until="compare").folder


def manifest_of(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages" / stage / "manifest.json").read_text())
    return found


def test_every_round_starts_from_the_model_before_and_holds_to_the_first(finished: Path) -> None:
    fingerprint = {name: manifest_of(finished, name)["fingerprint"] for name in ("sft", "iterated-1", "iterated-2")}
    first, second = manifest_of(finished, "iterated-1"), manifest_of(finished, "iterated-2")
    assert first["inputs"]["sft"] == fingerprint["sft"]
    assert second["inputs"]["iterated-1"] == fingerprint["iterated-1"]
    assert second["config"]["reference"] == "sft"
    assert manifest_of(finished, "iterated-2-generate")["config"]["prompts"] == "held_out"


def test_copies_differ_by_their_seed_only(finished: Path) -> None:
    five, six = manifest_of(finished, "rs-s5"), manifest_of(finished, "rs-s6")
    assert (five["seed"], six["seed"]) == (5, 6)
    assert five["inputs"] == six["inputs"]
    weights = "model/model.safetensors"
    assert five["files"][weights]["sha256"] != six["files"][weights]["sha256"]


def test_the_comparison_has_every_round_and_the_copies_as_one_method(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert set(results["models"]) == {"sft", "rs", "iterated-1", "iterated-2"}


def test_the_run_says_what_the_forms_stood_for(finished: Path) -> None:
    recipe = json.loads((finished / "recipe.json").read_text())
    assert "iterated" not in recipe["stages"]
    assert recipe["stages"]["compare"]["methods"] == {"rs": ["rs-s5", "rs-s6"]}
    assert recipe["stages"]["iterated-2"]["reference"] == "sft"
