"""Folders of results: which recipe one belongs to, as two of one name must not share it; and whether results can name it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from align.config.recipe import Recipe
from align.errors import EnvironmentProblem, RecipeError
from align.store.atomic import make_way
from align.store.seal import read_sealed, write_sealed

RECIPE_NAME = "recipe.json"
PATH_KEY = "path"


def write_owner(recipe: Recipe, run_folder: Path, command: list[str]) -> None:
    """Write `recipe.json`: the resolved recipe, the command, and the path of the recipe's file, from this folder on."""
    # Relative, so that a project can be moved or copied with its runs. A recipe of `align stage` has no file.
    path = os.path.relpath(recipe.path.resolve(), run_folder.resolve()) if recipe.path.is_file() else None
    make_way(run_folder / RECIPE_NAME)
    write_sealed(run_folder / RECIPE_NAME, {**recipe.resolved(), "command": command, PATH_KEY: path})


def _owner(run_folder: Path) -> Path | None:
    """The file of the recipe that a folder belongs to, if it is there."""
    try:
        written: Any = read_sealed(run_folder / RECIPE_NAME)[PATH_KEY]
        # Whoever damaged the file may have left a path that no file can have.
        owner = (run_folder.resolve() / written).resolve()
        return owner if owner.is_file() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def refuse_other_recipe(recipe: Recipe, run_folder: Path) -> None:
    """Check that the folder's last run was of this recipe's file, or of a file that is gone since, moved or renamed.

    Raises:
        RecipeError: if it was of another one that is still there.
    """
    other = _owner(run_folder)
    if other is None or (recipe.path.is_file() and other.samefile(recipe.path)):
        return
    this = recipe.path.resolve() if recipe.path.is_file() else recipe.path
    raise RecipeError(
        f"{run_folder} has a run of another recipe that is also called {recipe.name}:\n  {other}\n  {this} (this one)",
        hint=f"Change `name:` in one of them, or give another folder with --out.\n"
        f"To go on in this folder with this one, delete {run_folder / RECIPE_NAME}; finished stages are kept.",
    )


def refuse_names_that_are_no_text(*folders: Path) -> None:
    """Check that folders have names that results can name: those of another encoding than UTF-8 cannot be written.

    Raises:
        EnvironmentProblem: for the first that has not.
    """
    for folder in folders:
        where = folder.resolve()
        if not _is_text(where):
            wrong = next(parent for parent in (*reversed(where.parents), where) if not _is_text(parent))
            raise EnvironmentProblem(
                f"{os.fsencode(wrong).decode(errors='backslashreplace')}: this name is not UTF-8, and results name their folder",
                hint="Rename it (convmv does, of names in EUC-KR too), or work in another folder.",
            )


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # what Python keeps of bytes that are not UTF-8
        return False
    return True
