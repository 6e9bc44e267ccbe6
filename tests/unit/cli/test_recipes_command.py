"""`align recipes`."""

from __future__ import annotations

import glob
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from align.config.schema_files import SHIPPED_SCHEMAS
from align.config.shipped import SHIPPED_RECIPES


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "shelf" / "first"
    (recipe / "data").mkdir(parents=True)
    (recipe / "recipe.yaml").write_text("name: first # 첫째\n", encoding="utf-8")
    (recipe / "README.md").write_text("# First\n\nA recipe to\nbegin with. More.\n")
    (recipe / "data" / "rows.jsonl").write_text("")
    (tmp_path / "shelf" / "no_recipe").mkdir()
    return tmp_path / "shelf"


def test_list(align: Any, shelf: Path) -> None:
    assert align("recipes", "list", "--folder", str(shelf)).out == "first  A recipe to begin with.\n"
    (row,) = json.loads(align("recipes", "list", "--folder", str(shelf), "--json").out)
    assert row["name"] == "first"


def test_recipes_of_a_group_come_last_and_the_last_part_of_the_name_is_enough(align: Any, shelf: Path, tmp_path: Path) -> None:
    one = shelf / "a_group" / "one-1b"
    one.mkdir(parents=True)
    (one / "recipe.yaml").write_text("name: one\n")
    (one / "README.md").write_text("# One\n\nFor a model.\n")
    listed = align("recipes", "list", "--folder", str(shelf)).out
    assert listed == "first           A recipe to begin with.\na_group/one-1b  For a model.\n"
    assert align("recipes", "show", "a_group/one-1b", "--folder", str(shelf)).out == "name: one\n"
    assert align("recipes", "copy", "one-1b", "--folder", str(shelf)).out == "one-1b/recipe.yaml\n"


def test_show_is_the_file(align: Any, shelf: Path) -> None:
    assert align("recipes", "show", "first", "--folder", str(shelf)).out == "name: first # 첫째\n"


def test_a_wheel_holds_every_file_of_the_recipes_and_every_schema() -> None:
    """What its build takes along is what these patterns find in the package's folder."""
    package = Path(__file__).parents[3] / "align"
    assert package / "recipes" == SHIPPED_RECIPES
    setuptools = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {
        path for pattern in setuptools["package-data"]["align"] for path in glob.glob(str(package / pattern), recursive=True)
    }
    linked = (SHIPPED_RECIPES, SHIPPED_SCHEMAS)
    files = {os.path.join(folder, name) for place in linked for folder, _, names in os.walk(place) for name in names}
    assert len(files) > 30
    assert files <= packed


def test_copy_never_writes_over_anything(align: Any, shelf: Path, tmp_path: Path) -> None:
    assert align("recipes", "copy", "first", "mine", "--folder", str(shelf)).out == "mine/recipe.yaml\n"
    assert (tmp_path / "mine" / "data" / "rows.jsonl").exists()
    answer = align("recipes", "copy", "first", "mine", "--folder", str(shelf))
    assert answer.code == 2
    assert "mine: exists already" in answer.err


def test_an_unknown_recipe_has_a_suggestion(align: Any, shelf: Path) -> None:
    answer = align("recipes", "show", "frist", "--folder", str(shelf))
    assert answer.code == 2
    assert answer.err == "error: frist: unknown recipe; did you mean 'first'?\n"


def test_a_folder_without_recipes(align: Any, tmp_path: Path) -> None:
    answer = align("recipes", "list", "--folder", str(tmp_path))
    assert answer.code == 2
    assert "--folder" in answer.err


def test_a_copy_brings_what_the_recipe_borrows_from_another(align: Any, shelf: Path, tmp_path: Path) -> None:
    second = shelf / "second"
    second.mkdir()
    text = (
        "# yaml-language-server: $schema=../../data_schemas/recipe.schema.json\n"
        "inputs: {rows: {kind: prompts, path: ../first/data/rows.jsonl}, base: {kind: model, path: ../first/data}}\n"
        "stages: {x: {rules: ../gone/rules.yaml}}\n"
    )
    (second / "recipe.yaml").write_text(text, encoding="utf-8")
    assert align("recipes", "copy", "second", "mine", "--folder", str(shelf)).out == "mine/recipe.yaml\n"
    copied = (tmp_path / "mine" / "recipe.yaml").read_text(encoding="utf-8")
    assert copied == text.replace("../first/", "first/").replace("../../data_schemas/", ".align/")
    assert (tmp_path / "mine" / "first" / "data" / "rows.jsonl").is_file()


NAMES = ("folder", "name", "said")


@pytest.mark.parametrize(
    NAMES, [("mine", "mine", ""), ("my trial", "my-trial", "called my-trial"), ("내 실험", "my-first", "my-first")]
)
def test_a_copy_is_called_like_its_folder_and_has_a_schema_beside_it(
    align: Any, shelf: Path, folder: str, name: str, said: str
) -> None:
    answer = align("recipes", "copy", "first", folder, "--folder", str(shelf))
    assert answer.code == 0
    assert said in answer.err
    assert ("The recipe is called" in answer.err) == bool(said)
    line, text = Path(folder, "recipe.yaml").read_text(encoding="utf-8").splitlines()
    assert text == f"name: {name} # 첫째"
    assert Path(folder, line.partition("$schema=")[2]).read_bytes() == (SHIPPED_SCHEMAS / "recipe.schema.json").read_bytes()


def test_a_copy_says_what_to_do_next(align: Any, shelf: Path) -> None:
    answer = align("recipes", "copy", "first", "my runs", "--folder", str(shelf))
    assert answer.out == "my runs/recipe.yaml\n"
    assert answer.err.endswith("Next: align plan 'my runs'\n")


def test_a_copy_to_a_place_that_cannot_be_written(align: Any, shelf: Path) -> None:
    Path("file").touch()
    answer = align("recipes", "copy", "first", "file/mine", "--folder", str(shelf))
    assert answer.code == 4
    assert answer.err == "error: file/mine: cannot be written (Not a directory)\n→ Choose another place.\n"
