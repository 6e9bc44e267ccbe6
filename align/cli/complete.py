"""What a shell proposes when a user presses Tab. A mistake in a recipe gives no proposals.

Nothing slow is imported, except for the stages of a recipe with `sweep`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from align.config.schema_files import RECIPE_SCHEMA, SCHEMA_SUFFIX, SHIPPED_SCHEMAS
from align.config.shipped import RECIPE_NAME, SHIPPED_DOCS, SHIPPED_RECIPES, recipe_file, recipes_in
from align.errors import AlignError

if TYPE_CHECKING:
    # Typer vendors click and has no public name for these types.
    from typer._click import Context
    from typer._click.core import Parameter

    from align.config.entry import Entry
    from align.config.reference import FieldPath

STAGE_PREFIX = "stage_"


@contextmanager
def words_as_they_are() -> Iterator[None]:
    """Typer does not convert words inside this: it would import pydantic for that, which takes 0.1 s."""
    # Typer has no public name for it.
    from typer import _coercion, core

    class Word(_coercion.RuntimeParam):
        def _coerce_value(self, value: Any, param: Parameter, ctx: Context) -> Any:
            return value

    module: Any = core
    build = module.build_runtime_param
    module.build_runtime_param = lambda described: Word(described.parameter_info, described.annotation)
    try:
        yield
    finally:
        module.build_runtime_param = build


def shipped_recipes(incomplete: str) -> list[str]:
    """Names of the recipes that come with align."""
    return [name for name in recipes_in(SHIPPED_RECIPES) if name.startswith(incomplete)]


def docs_pages(incomplete: str) -> list[str]:
    """Names of the pages of the documentation."""
    return sorted(path.stem for path in SHIPPED_DOCS.glob("*.md") if path.stem.startswith(incomplete))


def recipes(incomplete: str) -> list[str]:
    """Folders and YAML files that a path may go on with, and the recipes that come with align."""
    folder, _, start = incomplete.rpartition("/")
    beside = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser().glob(f"{start}*"))
    prefix = f"{folder}/" if "/" in incomplete else ""
    found = [f"{prefix}{path.name}" + ("" if _is_recipe(path) else "/") for path in beside if _may_lead_to_one(path)]
    return [*found, *shipped_recipes(incomplete)]


def _is_recipe(path: Path) -> bool:
    return path.is_file() or (path / RECIPE_NAME).is_file()


def _may_lead_to_one(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or path.suffix in (".yaml", ".yml"))


def stages_of_recipe(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the stages of the recipe on the command line."""
    # An option that still lacks its value ends the parsing before arguments get their names.
    recipe = context.params.get("recipe") or next(iter(context.args), None)
    try:
        names = _stage_names(recipe_file(recipe)) if recipe else []
    except (AlignError, OSError, AttributeError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def _stage_names(path: Path) -> list[str]:
    """The stages that all entries stand for, `rounds` and `seeds` among them."""
    from align.config.entry import spread_seeds
    from align.config.source import read_document

    document = read_document(path).value
    if document.get("sweep"):
        # The stages that a sweep writes out depend on the types of all fields. Importing them takes about a second.
        from align.pipeline.recipe import load_recipe

        return list(load_recipe(path).stages)
    stages = document["stages"]
    definitions = _definitions()
    entries = {name: _entry(name, value, definitions) for name, value in stages.items()}
    spread_seeds(entries)
    return [name for entry in entries.values() for name in entry.stage_names()]


def _entry(name: str, value: dict[str, Any], definitions: Mapping[str, Any]) -> Entry:
    """An entry of `stages`. Which of its fields hold references, the schema says."""
    from align.config.entry import MAX_COPIES, Entry, is_rounds, written_blocks
    from align.stages.registry import STAGES

    rounds = min(value["rounds"], MAX_COPIES) if is_rounds(value) else None
    entry = Entry(name, value, "model" if rounds else "", [], None, rounds, own_seeds="seeds" in value)
    if rounds:
        entry.references.append((("model",), value["model"]))
    for _, stage, fields in written_blocks(name, value):
        if stage in STAGES:
            entry.kind = STAGES[stage].produces
            schemas = definitions[f"{STAGE_PREFIX}{stage}"]["properties"]
            for key in fields.keys() & schemas.keys():
                entry.references += _references(schemas[key], fields[key], (key,))
    if not entry.is_comparison:
        entry.seeds = list(dict.fromkeys(value.get("seeds") or ()))[:MAX_COPIES] or None
    return entry


def _references(schema: Mapping[str, Any], value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    """The names in a field that are references, with their paths."""
    for form in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if isinstance(value, str) and "x-artifact-kinds" in form:
            yield path, value
        elif isinstance(value, list) and "items" in form:
            for index, item in enumerate(value):
                yield from _references(form["items"], item, (*path, index))
        elif isinstance(value, dict) and isinstance(form.get("additionalProperties"), dict):
            for key, item in value.items():
                yield from _references(form["additionalProperties"], item, (*path, key))


def _definitions() -> dict[str, Any]:
    """The parts of the schema of recipes: the stages themselves would be slow to import."""
    return json.loads((SHIPPED_SCHEMAS / RECIPE_SCHEMA).read_bytes())["$defs"]  # type: ignore[no-any-return]


def stage_types(incomplete: str) -> list[tuple[str, str]]:
    """Stage types with what they do."""
    stages = {key.removeprefix(STAGE_PREFIX): value for key, value in _definitions().items() if key.startswith(STAGE_PREFIX)}
    return [(name, str(value["description"]).splitlines()[0]) for name, value in stages.items() if name.startswith(incomplete)]


def schemas(incomplete: str) -> list[str]:
    """Names of the schemas that come with align."""
    return sorted(path.name.removesuffix(SCHEMA_SUFFIX) for path in SHIPPED_SCHEMAS.glob(f"{incomplete}*{SCHEMA_SUFFIX}"))


def kinds(incomplete: str) -> list[str]:
    """Kinds of rows that a user's file may hold."""
    from align.rows import data_kinds

    return [name for name in data_kinds() if name.startswith(incomplete)]


def goals(incomplete: str) -> list[tuple[str, str]]:
    """Goals of `align init` with what they do."""
    from align.pipeline.starter.choices import GOALS

    return [one for one in GOALS.items() if one[0].startswith(incomplete)]


def methods(incomplete: str) -> list[str]:
    """What `align init --goal compare` can compare."""
    from align.pipeline.starter.choices import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def rule_types(incomplete: str) -> list[tuple[str, str]]:
    """Rules of `align init --rule` with what they want of an answer."""
    from align.pipeline.starter.choices import RULES

    return [one for one in RULES.items() if one[0].startswith(incomplete)]
