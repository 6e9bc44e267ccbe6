"""Where a recipe is: a file, a folder, or one of the recipes that come with align, by its name."""

from __future__ import annotations

from pathlib import Path

from align.errors import RecipeError

RECIPE_NAME = "recipe.yaml"
SHIPPED_RECIPES = Path(__file__).parents[1] / "recipes"
SHIPPED_DOCS = Path(__file__).parents[1] / "docs"
"""In a checkout it is a link to the folder beside the package; a wheel has the files themselves."""


def recipes_in(folder: Path) -> dict[str, Path]:
    """Folder of every recipe, by name. Those of a group, such as `models/olmo-2-1b`, come behind those of none."""
    place = folder.resolve()
    found = [path.parent for group in ("*", "*/*") for path in sorted(place.glob(f"{group}/{RECIPE_NAME}"))]
    return {path.relative_to(place).as_posix(): path for path in found}


def by_name(name: str, recipes: dict[str, Path]) -> Path | None:
    """The folder of the recipe; the last part of its name is enough where it says which is meant."""
    meant = [full for full in recipes if name == full.rpartition("/")[2]]
    return recipes.get(meant[0] if len(meant) == 1 else name)


def recipe_file(written: str | Path) -> Path:
    """The file of a recipe. A file or folder that is there comes before a recipe of that name that comes with align.

    Raises:
        RecipeError: if there is neither.
    """
    path = Path(written).expanduser()
    shipped = by_name(path.as_posix(), recipes_in(SHIPPED_RECIPES))
    if path.is_dir():
        if not (path / RECIPE_NAME).is_file():
            files = [found for pattern in ("*.yaml", "*.yml") for found in sorted(path.glob(pattern))]
            hint = f"Did you mean {files[0]}?" if files else "Give the recipe's file, or the folder that holds it."
            if shipped is not None:
                hint = f"A folder comes before the recipe of that name that comes with align, which is {shipped}."
            raise RecipeError(f"{path}: this folder has no {RECIPE_NAME}", hint=hint)
        return path / RECIPE_NAME
    if path.exists():
        return path
    if shipped is None:
        raise RecipeError(f"{path}: there is no such file, folder or shipped recipe{_meant(path)}", hint=_HINT)
    return shipped / RECIPE_NAME


_HINT = "Relative paths start where you are; `align recipes list` shows the recipes that come with align."


def _meant(path: Path) -> str:
    """The recipe that was probably meant, as the end of a sentence, or nothing."""
    from align.config.names import nearest
    from align.config.other_tools import table

    if near := _near_path(path):
        return f"; did you mean {near}?"
    if any(path.as_posix() in word.here for word in table()["stages"]):
        return f"; a stage of a recipe is --only {path}, one without a recipe align stage {path}"
    names = [*recipes_in(SHIPPED_RECIPES)]
    names += [name.rpartition("/")[2] for name in names]
    found = nearest(path.as_posix(), names) or nearest(path.name, names)
    return f"; did you mean '{found}', which comes with align?" if found else ""


def _near_path(path: Path) -> Path | None:
    """The path of a recipe that differs from this one in the first part that does not exist."""
    from align.config.names import nearest

    missing = next(part for part in (*reversed(path.parents), path) if not part.exists())
    rest = path.relative_to(missing)
    try:
        siblings = list(missing.parent.iterdir())
    except OSError:
        return None
    near = nearest(missing.name, [one.name for one in siblings if _is_recipe(one / rest)])
    return missing.with_name(near) / rest if near else None


def _is_recipe(path: Path) -> bool:
    return (path / RECIPE_NAME).is_file() or (path.suffix in (".yaml", ".yml") and path.is_file())
