"""Two recipes of one name do not share a folder of results."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from align.errors import EnvironmentProblem, RecipeError
from align.pipeline.owner import refuse_other_recipe, write_owner
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.store.seal import write_sealed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of the recipe `first/recipe.yaml`, called `tried`, beside another recipe of that name."""
    folder = tmp_path / "project"
    for name in ("first", "second"):
        write_recipe(folder / name)
    owned = folder / "runs" / "tried"
    owned.mkdir(parents=True)
    write_owner(load_recipe(folder / "first"), owned, [])
    return folder


def write_recipe(folder: Path, extra: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").touch()
    inputs = "{m: {kind: model, hub_id: a/b, revision: main}, d: {kind: instructions, path: rows.jsonl}}"
    stages = "{sft: {stage: sft, model: m, data: d}}"
    (folder / "recipe.yaml").write_text(f"name: tried\n{extra}inputs: {inputs}\nstages: {stages}\n")


def test_another_recipe_of_the_name_is_refused_with_both_paths(folder: Path) -> None:
    with pytest.raises(RecipeError) as found:
        make_plan(load_recipe(folder / "second"), folder / "runs")
    text = str(found.value)
    for needed in (
        folder / "first" / "recipe.yaml",
        folder / "second" / "recipe.yaml",
        folder / "runs" / "tried" / "recipe.json",
    ):
        assert str(needed) in text
    assert "`name:`" in text
    assert "--out" in text


def test_the_same_recipe_goes_on_however_its_path_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = folder / "runs" / "tried"
    write_recipe(folder / "first", "seed: 3\n")
    (folder / "link").symlink_to("first")
    refuse_other_recipe(load_recipe(folder / "link"), owned)
    monkeypatch.chdir(folder / "first")
    refuse_other_recipe(load_recipe(Path()), owned)
    monkeypatch.chdir(folder)
    refuse_other_recipe(load_recipe(Path("first/recipe.yaml")), Path("runs/tried"))


def test_a_moved_recipe_goes_on(folder: Path) -> None:
    shutil.move(folder / "first", folder / "third")
    refuse_other_recipe(load_recipe(folder / "third"), folder / "runs" / "tried")


def test_a_copy_of_a_project_with_its_runs_is_a_project_of_its_own(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("copied") / "project")
    refuse_other_recipe(load_recipe(copy / "first"), copy / "runs" / "tried")
    with pytest.raises(RecipeError):
        refuse_other_recipe(load_recipe(copy / "second"), copy / "runs" / "tried")


@pytest.mark.parametrize("content", ["{}", "[1", "[]", "[" * 100_000, None, 3, "a" * 5000, "\0"])
def test_a_folder_without_a_known_recipe_is_taken_over(folder: Path, content: str | int | None) -> None:
    written = folder / "runs" / "tried" / "recipe.json"
    if isinstance(content, str) and content[0] in "[{":
        written.write_text(content)
    else:
        write_sealed(written, {"path": content})
    refuse_other_recipe(load_recipe(folder / "second"), folder / "runs" / "tried")


def test_a_folder_whose_name_is_not_utf8_is_refused(folder: Path) -> None:
    korean = Path(os.fsdecode(bytes(folder) + "/한글".encode("euc-kr")))
    write_recipe(korean)
    for recipe, out in ((korean, folder / "runs"), (folder / "first", korean)):
        with pytest.raises(EnvironmentProblem, match="this name is not UTF-8") as found:
            make_plan(load_recipe(recipe), out)
        found.value.render().encode()  # can be printed and written
