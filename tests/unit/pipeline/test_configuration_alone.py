"""A plan needs a model's config.json and nothing else: the same sizes as with weights, none fetched, and no run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from align import run_recipe
from align.cli.main import main
from align.errors import RecipeError
from align.models.hub import fetch_model
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.testing.tiny import tiny_causal_lm

GIB = 1 << 30
MACHINE = Machine("cuda", "GPU", 8 * GIB, 8 * GIB, 50 * GIB, has_bfloat16=True)


def figures(recipe: Path, out: Path) -> dict[str, Any]:
    plan = make_plan(load_recipe(recipe), out, sizes_only=True)
    return estimate_plan(plan, MACHINE).to_json()


def test_the_estimate_is_that_of_the_weights(project: Path, tmp_path: Path) -> None:
    recipe = project / "recipe.yaml"
    before = figures(recipe, tmp_path)
    (project / "base" / "model.safetensors").unlink()
    assert figures(recipe, tmp_path) == before
    for file in (project / "base").iterdir():
        if file.name != "config.json":
            file.unlink()
    # Without a tokenizer the rows count as long as their stage lets them be.
    assert all(stage["methods"] for stage in figures(recipe, tmp_path)["stages"])


def test_a_run_wants_weights(project: Path, tmp_path: Path) -> None:
    (project / "base" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="there are no weights"):
        run_recipe(load_recipe(project / "recipe.yaml"), tmp_path)


def test_plan_says_that_no_weights_are_there(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "base" / "model.safetensors").unlink()
    assert main(["plan", str(project / "recipe.yaml"), "--out", str(tmp_path)]) == 0
    assert "base: no weights are here; its sizes are those of config.json" in capsys.readouterr().out


def test_a_template_of_the_recipe_is_the_models_here_too(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was left out, and the plan then told to write what was written."""
    (project / "base" / "model.safetensors").unlink()
    settings = json.loads((project / "base" / "tokenizer_config.json").read_text())
    (project / "base" / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}))
    (project / "base" / "chat_template.jinja").unlink(missing_ok=True)
    plan = ["plan", str(project / "recipe.yaml"), "--out", str(tmp_path)]
    assert main(plan) == 2
    assert "the tokenizer has no chat template" in capsys.readouterr().err
    assert main([*plan, "--set", "inputs.base.chat.template=chatml"]) == 0
    assert "base: no weights are here" in capsys.readouterr().out


def test_pickled_weights_are_refused_in_a_plan_too(project: Path, tmp_path: Path) -> None:
    (project / "base" / "model.safetensors").rename(project / "base" / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="pickled"):
        make_plan(load_recipe(project / "recipe.yaml"), tmp_path, sizes_only=True)


def test_no_weights_are_fetched_for_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache has of them is completed, since a plan of a finished run must find its results."""
    folder, ignored = tiny_causal_lm(tmp_path / "model"), []

    def snapshot_download(hub_id: str, *, ignore_patterns: list[str], **_: Any) -> str:
        ignored.append("*.safetensors" in ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    fetch_model("owner/name", "main", weights=False)
    fetch_model("owner/name", "main")
    assert ignored == [True, False]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\ninputs:\n  m: {kind: model, hub_id: owner/name, revision: main}\n  p: {kind: prompts, path: p.jsonl}\n"
        "stages: {g: {stage: generate, model: m, prompts: p}}\n"
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    make_plan(load_recipe(recipe), tmp_path / "runs", sizes_only=True)
    assert ignored[2:] == [True, False]
    (folder / "model.safetensors").unlink()
    make_plan(load_recipe(recipe), tmp_path / "runs", sizes_only=True)
    assert ignored[4:] == [True]
