"""data_schemas/ says what the code says, and what it says of a recipe or a row is true."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "data_schemas"

MESSAGES = [{"role": "user", "content": "q"}]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_schemas", ROOT / "scripts" / "build_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


def test_schemas_do_not_differ_from_the_code(script: ModuleType) -> None:
    assert script.drifted(SCHEMAS) == [], "run python scripts/build_schemas.py"


def test_drift_is_found_and_named(script: ModuleType, tmp_path: Path) -> None:
    for path in SCHEMAS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "recipe.schema.json").write_text("{}\n")
    (tmp_path / "text.schema.json").unlink()
    (tmp_path / "old.schema.json").write_text("{}\n")
    assert script.drifted(tmp_path) == ["old.schema.json", "recipe.schema.json", "text.schema.json"]


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.name)
def test_schemas_are_schemas(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))


def fields_of_recipes() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, schema and surrounding definitions of every field that a recipe may have."""
    whole = validator("recipe").schema
    parts = {"recipe": whole, **whole["$defs"]}
    return [
        (f"{part}.{key}", field, whole["$defs"])
        for part, definition in parts.items()
        for key, field in definition.get("properties", {}).items()
    ]


def test_an_editor_can_explain_every_field_of_a_recipe_with_its_default() -> None:
    silent = [name for name, field, _ in fields_of_recipes() if not field.get("description")]
    assert silent == []
    without = [
        name
        for name, field, _ in fields_of_recipes()
        if field.get("default") is not None and "default:" not in field["description"].lower()
    ]
    assert without == []


def test_examples_of_fields_are_what_the_field_takes() -> None:
    with_examples = [(name, field, definitions) for name, field, definitions in fields_of_recipes() if "examples" in field]
    assert len(with_examples) >= 60
    for name, field, definitions in with_examples:
        check = jsonschema.Draft202012Validator({**field, "$defs": definitions})
        assert [error.message for example in field["examples"] for error in check.iter_errors(example)] == [], name


def test_every_entry_of_the_table_of_examples_is_used(script: ModuleType) -> None:
    names = {name.removeprefix("recipe") for name, field, _ in fields_of_recipes() if "examples" in field}
    assert [key for key in script.EXAMPLES if key not in names and key not in {name.rpartition(".")[2] for name in names}] == []


def recipe(**stage: Any) -> dict[str, Any]:
    return {"name": "x", "inputs": {"m": {"kind": "model", "path": "m"}}, "stages": {"s": stage}}


@pytest.mark.parametrize(
    "stage",
    [
        {"stage": "dpo", "model": "m", "pairs": "p", "beta": 0.2},
        {"stage": "score", "candidates": "c", "scorers": {"rm": "reward", "gold": {"rules": "gold.yaml"}}},
        {"stage": "score", "candidates": "c", "scorers": {"gold": {"rules": [{"type": "length", "name": "l", "max_words": 3}]}}},
    ],
)
def test_right_stages_fit_the_schema(stage: dict[str, Any]) -> None:
    validator("recipe").validate(recipe(**stage))


@pytest.mark.parametrize(
    "stage",
    [
        {"stage": "dpo", "model": "m", "pairs": "p", "betta": 0.2},
        {"stage": "dpo", "model": "m", "pairs": "p", "beta": 0},
        {"stage": "dpo", "model": "m"},
        {"stage": "dop", "model": "m", "pairs": "p"},
        {"model": "m", "pairs": "p"},
        {"stage": "score", "candidates": "c", "scorers": {"gold": {"rules": [{"type": "lenght", "name": "l"}]}}},
    ],
)
def test_wrong_stages_do_not(stage: dict[str, Any]) -> None:
    assert not validator("recipe").is_valid(recipe(**stage))


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ({"kind": "model", "path": "m"}, True),
        ({"kind": "reward_model", "hub_id": "a/b", "revision": "main"}, True),
        ({"kind": "prompts", "path": "p.jsonl", "columns": {"prompt": "Q"}}, True),
        ({"kind": "scored_candidates", "path": "c/*.jsonl"}, True),
        ({"kind": "scored_candidates", "artifact": "runs/a/stages/s"}, True),
        ({"kind": "comparison", "artifact": "runs/a/stages/compare"}, True),
        ({"kind": "comparison", "path": "x"}, False),
        ({"kind": "scored_candidates"}, False),
        ({"kind": "model", "path": "m", "columns": {"prompt": "Q"}}, False),
        ({"kind": "prompts", "path": "p", "artifact": "runs/a/stages/s"}, False),
        ({"kind": "prompt", "path": "p"}, False),
        ({"path": "p"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_inputs(entry: Any, fits: bool) -> None:
    assert validator("recipe").is_valid({**recipe(stage="dpo", model="m", pairs="p"), "inputs": {"m": entry}}) == fits


@pytest.mark.parametrize(("part", "keys"), [("inputs", {"kind", "artifact"}), ("stages", {"stage", "rounds"})])
def test_an_editor_can_complete_what_decides_the_other_keys_and_then_those(part: str, keys: set[str]) -> None:
    """yaml-language-server offers the keys of an entry's own properties, and of the one `then` whose `if` holds."""
    schema = validator("recipe").schema
    entry = schema["properties"][part]["additionalProperties"]
    assert set(entry["properties"]) == keys
    assert not {"anyOf", "oneOf"} & {*entry, *entry["else"]}, "it would offer the keys of all choices at once"
    choices = [entry, *entry["else"]["allOf"]]
    # An entry that is still empty is null.
    assert [choice for choice in choices if jsonschema.Draft202012Validator(choice["if"]).is_valid(None)] == []
    reached = {choice["then"]["$ref"].removeprefix("#/$defs/") for choice in choices}
    assert all(schema["$defs"][name]["properties"] and schema["$defs"][name]["title"] for name in reached)
    assert len(reached) == len(choices) >= 4


@pytest.mark.parametrize(
    ("kind", "row", "fits"),
    [
        ("instructions", {"prompt": "q", "completion": "a"}, True),
        ("instructions", {"prompt": MESSAGES, "completion": "a", "id": "1", "source": "web"}, True),
        ("instructions", {"messages": [*MESSAGES, {"role": "assistant", "content": "a"}]}, True),
        ("instructions", {"prompt": "q"}, False),
        ("instructions", {"prompt": 3, "completion": "a"}, False),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b"}, True),
        ("preferences", {"chosen": MESSAGES, "rejected": MESSAGES}, True),
        ("preferences", {"prompt": "q", "chosen": "a"}, False),
        ("prompts", {"prompt": "q", "reference": "r"}, True),
        ("prompts", {"prompt": [{"role": "robot", "content": "q"}]}, False),
        ("text", {"text": "t"}, True),
        ("text", {"text": ""}, False),
    ],
)
def test_rows_that_users_write(kind: str, row: dict[str, Any], fits: bool) -> None:
    assert validator(kind).is_valid(row) == fits
