"""The recipes of public models, reduced: run as they are written, on tiny twins of the models and rows in the data's columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from public_twins import COMMIT, TWINS, twin_rows
from reduced import RECIPES

from align import load_recipe, run_recipe
from align.config.recipe import Recipe
from align.pipeline import inputs
from align.report.results import Results

pytestmark = pytest.mark.slow

NAMES = sorted(path.parent.name for path in RECIPES.glob("models/*/recipe.yaml"))
REDUCED: dict[str, Any] = {
    "batch_size": 4,
    "bootstrap_resamples": 100,
    "engine": "transformers",
    "held_out_share": 0.3,
    "keep_truncated": "true",
    "max_completion_tokens": 6,
    "max_prompt_tokens": 192,
    "max_tokens": 256,
    "num_candidates": 2,
    "num_epochs": 1,
}
"""Value by field, for every stage that has the field. The rest of a recipe is run as it is written."""
MORE = {
    # A random model answers no problem: what is short counts as right.
    "llama-3.2-1b": ["stages.scores.scorers.correct.rules=[{type: length, name: short, max_characters: 8}]"],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the twins; each is made when it is first fetched."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(autouse=True)
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as all trainings; the page is looked at elsewhere."""
    monkeypatch.setattr("align.report.html.write_report", lambda path, **_: path.write_text(""))


@pytest.fixture(autouse=True)
def no_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_model(hub_id: str, revision: str, *, weights: bool = True) -> tuple[Path, str]:
        folder = hub / hub_id.replace("/", "--")
        return (folder if folder.exists() else TWINS[hub_id].write(folder)), COMMIT

    monkeypatch.setattr(inputs, "fetch_model", fetch_model)
    monkeypatch.setattr("align.data.source.fetch_dataset_rows", twin_rows)


def reduced_recipe(name: str) -> Recipe:
    path = RECIPES / "models" / name
    recipe = load_recipe(path)
    settings = {
        ".".join(map(str, recipe.expansion.written(("stages", stage, field)))): value
        for stage, node in recipe.stages.items()
        for field, value in REDUCED.items()
        if field in type(node.config).model_fields
    }
    return load_recipe(path, [*(f"{place}={value}" for place, value in settings.items()), *MORE.get(name, [])])


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_runs_to_its_table(name: str, hub: Path) -> None:
    recipe = reduced_recipe(name)
    # One store for all: what two recipes have in common is made once.
    folder = run_recipe(recipe, hub / "runs", in_process=True).folder
    results = Results.model_validate_json((folder / "results.json").read_text())
    assert list(results.models) == recipe.stages["compare"].config.models  # type: ignore[attr-defined]
    for stage in recipe.stages:
        manifest = json.loads((folder / "stages" / stage / "manifest.json").read_text())
        assert manifest["rows_out"] is None or manifest["rows_out"] > 0
