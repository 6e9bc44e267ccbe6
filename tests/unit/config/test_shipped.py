"""Where a recipe is: a path, or the name of one that comes with align."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config.shipped import SHIPPED_RECIPES, recipe_file
from align.errors import RecipeError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").touch()
    (tmp_path / "peft").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["quickstart", "models/olmo-2-1b", "olmo-2-1b"])
def test_a_name_is_a_recipe_that_comes_with_align(name: str) -> None:
    found = recipe_file(name)
    assert found.samefile(next(SHIPPED_RECIPES.rglob(f"{name.rpartition('/')[2]}/recipe.yaml")))


def test_a_path_comes_before_a_name() -> None:
    assert recipe_file("mine") == Path("mine/recipe.yaml")
    Path("quickstart").mkdir()
    Path("quickstart/recipe.yaml").touch()
    assert recipe_file("quickstart") == Path("quickstart/recipe.yaml")
    with pytest.raises(RecipeError, match=r"peft: this folder has no recipe.yaml\n.*A folder comes before.*recipes/peft\."):
        recipe_file("peft")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("quickstrat", "'quickstart', which comes with align"),
        ("recipes/quickstrat", "'quickstart', which comes with align"),
        ("recipes/quickstart", "'quickstart', which comes with align"),
        ("models/olmo-2-1", "'models/olmo-2-1b', which comes with align"),
        ("mnie", "mine"),
        ("mine/recipe.yml", "mine/recipe.yaml"),
        ("mnie/recipe.yaml", "mine/recipe.yaml"),
        ("mnie/rceipe.yaml", ""),
        ("zzzz", ""),
    ],
)
def test_what_was_probably_meant(written: str, meant: str) -> None:
    with pytest.raises(RecipeError) as found:
        recipe_file(written)
    assert found.value.message == f"{written}: there is no such file, folder or shipped recipe" + (
        f"; did you mean {meant}?" if meant else ""
    )
