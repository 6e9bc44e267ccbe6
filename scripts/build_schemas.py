"""Write data_schemas/ from the code: recipes, machine files, the rows users write, the rows stages write, manifests, results.

    python scripts/build_schemas.py            write
    python scripts/build_schemas.py --check    exit 1 and name what differs from the code

The schemas are JSON Schema 2020-12. Descriptions are the docstrings under the fields.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from align.config.entry import FILLED
from align.config.form import NODE_NAME, SEED_LIMIT, Copies, Rounds, Sweep
from align.config.inputs import AnyInput, ArtifactInput
from align.config.machine import MachineSettings
from align.config.recipe import DEFAULT_SEED, FILE_NAME
from align.config.sweep import CHOICE_STAGE, FILLED_BY_SWEEP
from align.report.results import Results
from align.rows import ROW_KINDS, DataKind
from align.runtime.events import EVENTS_VERSION, KINDS, adapter_of
from align.stages.registry import STAGES
from align.store.artifact import Manifest

FOLDER = Path(__file__).resolve().parent.parent / "data_schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFINITIONS = "#/$defs/{model}"

Schema = dict[str, Any]

EXAMPLES: Mapping[str, Any] = {
    "ModelInput.path": "models/base",
    "DataInput.path": "data/instructions.jsonl",
    "MixturePart.path": "data/chats/*.parquet",
    "CandidatesInput.path": "scored/*.jsonl",
    "RulesScorer.rules": "gold_rules.yaml",
    ".name": "my-first-run",
    "hub_id": "Qwen/Qwen3-0.6B-Base",
    "dataset": "openai/gsm8k",
    "subset": "main",
    "split": "train[:5000]",
    "revision": "main",
    "max_rows": 5000,
    "artifact": "runs/quickstart/stages/sft",
    "columns": {"prompt": "Question", "completion": "Answer"},
    "checks": {"repeated_rows": "drop", "near_duplicate": "error"},
    "decontaminate": ["held_out"],
    "template": "chatml",
    "date": "2025-01-01",
    "end_of_turn": "<|im_end|>",
    "base_url": "http://localhost:8000/v1",
    "api_key_env": "JUDGE_API_KEY",
    "judge": "judge.yaml",
    "chat": {"template": "chatml"},
    "peft": {"method": "lora", "rank": 16},
    "seeds": [1, 2, 3],
    "rounds": 2,
    "seed": 17,
    "fields": {"dpo.beta": [0.05, 0.1, 0.3], "dpo.learning_rate": {"log_uniform": [1e-6, 1e-4]}},
    "trials": 6,
    "first_prompts": 50,
    "top_k": 50,
    "checkpoint_steps": 500,
    "scorers": {"rm": "reward_model", "gold": {"rules": "gold_rules.yaml"}},
    "rounds_pairs.scorers": {"rm": 1.0, "gold": 0.5},
    "stage_pairs.scorers": {"rm": 1.0, "gold": 0.5},
    "models": ["sft", "dpo"],
    "stage_select_model.models": {"dpo": "dpo", "orpo": "orpo"},
    "baseline": "sft",
    "methods": {"dpo": ["dpo-s1", "dpo-s2"]},
    "best_of": [4, 16],
    "num_episodes": 10000,
    "kl_target": 6,
    "dual_clip": 3,
}
"""What a user might write, by the name of a field, or of a definition (the recipe has no name) and a field; editors show it."""


def without_titles(value: Any) -> Any:
    """The schema without the titles that pydantic makes of names; a property that is called title stays."""
    if isinstance(value, list):
        return [without_titles(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_titles(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))}


def schema_of(annotation: Any, definitions: Schema) -> Schema:
    """The schema of a type, its definitions moved into `definitions`."""
    schema: Schema = without_titles(TypeAdapter(annotation).json_schema(ref_template=DEFINITIONS))
    definitions.update(schema.pop("$defs", {}))
    return schema


def of_model(model: type[BaseModel]) -> Schema:
    schema: Schema = without_titles(model.model_json_schema(ref_template=DEFINITIONS))
    return schema


def named(pattern: str, entry: Schema, description: str) -> Schema:
    """A mapping of names, all written like `pattern`, to `entry`."""
    return {
        "type": "object",
        "description": description,
        "propertyNames": {"pattern": f"^{pattern}$"},
        "additionalProperties": entry,
    }


def recipe_schema() -> Schema:
    definitions: Schema = {}
    stages, inputs = _stage_entry(definitions), _input_entry(definitions)
    definitions["sweep"] = _sweep_schema(definitions)
    _allow_scorer_files(definitions)
    for name, definition in definitions.items():
        _explain(name, definition)
    properties = {
        "name": {
            "type": "string",
            "pattern": f"^{FILE_NAME.pattern}$",
            "description": "Name of the recipe and of its folder of results.",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "exclusiveMaximum": SEED_LIMIT,
            "default": DEFAULT_SEED,
            "description": "Everything random follows from it.",
        },
        "inputs": named(NODE_NAME.pattern, inputs, "Models and data, by the name stages call them."),
        "stages": {
            **named(NODE_NAME.pattern, stages, "Stages, by name; a field of a stage names an input or another stage."),
            "minProperties": 1,
        },
        "sweep": named(NODE_NAME.pattern, {"$ref": "#/$defs/sweep"}, "Trials of a stage with other settings, by its name."),
    }
    _explain("", {"properties": properties})
    return {
        "title": "recipe",
        "description": "A recipe of align.",
        "type": "object",
        "properties": properties,
        "required": ["name", "stages"],
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }


def _stage_entry(definitions: Schema) -> Schema:
    choices: list[Schema] = []
    for name, stage_type in STAGES.items():
        stage = schema_of(stage_type.config_type, definitions)
        if name in FILLED:
            definitions[f"rounds_{name}"] = _block_of_rounds(name, stage)
        stage["properties"] = {
            "stage": {"const": name, "description": stage["description"]},
            **stage["properties"],
            **of_model(Copies)["properties"],
        }
        stage["required"] = ["stage", *stage.get("required", [])]
        definitions[f"stage_{name}"] = {**stage, "title": f"{name} stage"}
        choices.append(_choice({"stage": {"const": name}}, f"stage_{name}"))
    definitions["rounds"] = {**_rounds_schema(), "title": "rounds of stages"}
    types = {"enum": list(STAGES), "description": "Type of the stage, which decides its other keys."}
    return {
        "title": "stage",
        "type": "object",
        "properties": {"stage": types, "rounds": {"description": definitions["rounds"]["properties"]["rounds"]["description"]}},
        **_choice({"rounds": True}, "rounds"),
        "else": {"required": ["stage"], "allOf": choices},
    }


def _input_entry(definitions: Schema) -> Schema:
    """Another run's result has the key `artifact`, and is of any kind; of the other inputs, each kind is read by one model."""
    by_kind: list[Schema] = []
    kinds: list[str] = []
    artifact: Schema = {}
    for model in get_args(AnyInput):
        name, schema = model.__name__, schema_of(model, definitions)
        kind = schema["properties"]["kind"]
        definitions[name] = {**schema, "title": f"{name.removesuffix('Input').lower()} input"}
        if model is ArtifactInput:
            artifact = schema["properties"]
            continue
        of_model_kinds = kind["enum"] if "enum" in kind else [kind["const"]]
        by_kind.append(_choice({"kind": {"enum": of_model_kinds}}, name))
        kinds += of_model_kinds
    return {
        "title": "input",
        "type": "object",
        "properties": {
            "kind": {"description": "What the input is, which decides its other keys."},
            "artifact": {"description": artifact["artifact"]["description"]},
        },
        **_choice({"artifact": True}, "ArtifactInput"),
        "else": {"required": ["kind"], "properties": {"kind": {"enum": kinds}}, "allOf": by_kind},
    }


def _choice(properties: Schema, definition: str) -> Schema:
    """An entry with these properties is what the definition says.

    Of if-then an editor reports only what is wrong with the choice that is meant, and completes its keys; of oneOf and anyOf,
    what is wrong with all. Without the type, the condition would hold for an entry that is still empty.
    """
    condition = {"type": "object", "properties": properties, "required": list(properties)}
    return {"if": condition, "then": {"$ref": f"#/$defs/{definition}"}}


def _explain(name: str, definition: Schema) -> None:
    """Give each field of a definition what an editor shows of it: a description with the default, and an example."""
    for key, field in definition.get("properties", {}).items():
        text = field.setdefault("description", definition.get("description", ""))
        # A field that is null unless it is set says in words what that means.
        if field.get("default") is not None and "default:" not in text.lower():
            default = field["default"]
            field["description"] = f"{text} Default: {default if isinstance(default, str) else json.dumps(default)}."
        example = EXAMPLES.get(f"{name}.{key}", EXAMPLES.get(key))
        if example is not None and not field.keys() & {"const", "enum", "$ref"}:
            field["examples"] = [example]


def _block_of_rounds(name: str, stage: Schema) -> Schema:
    """The fields of a stage that a person writes in rounds; the rest is filled in."""
    properties = {key: value for key, value in stage["properties"].items() if key not in FILLED[name]}
    if name == "generate":
        one = properties["prompts"]
        description = f"{one.get('description', '')} Or a list with an entry per round."
        properties["prompts"] = {"description": description, "anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    required = [key for key in stage.get("required", []) if key not in FILLED[name]]
    return {**stage, "properties": properties, "required": required}


def _rounds_schema() -> Schema:
    schema = of_model(Rounds)
    for name in FILLED:
        description = schema["properties"][name]["description"]
        schema["properties"][name] = {"$ref": f"#/$defs/rounds_{name}", "description": description}
    return schema


def _sweep_schema(definitions: Schema) -> Schema:
    """The fields of a sweep, and those of the stage that chooses, without what the sweep fills in."""
    own, choice = of_model(Sweep), definitions[f"stage_{CHOICE_STAGE}"]
    more = {key: value for key, value in choice["properties"].items() if key not in (*FILLED_BY_SWEEP, *Copies.model_fields)}
    required = [key for key in choice["required"] if key in more]
    return {**own, "properties": {**own["properties"], **more}, "required": [*own["required"], *required], "title": "sweep"}


def _allow_scorer_files(definitions: Schema) -> None:
    """A recipe may write a rule set as a list or as the path of a file, which the model reads in other ways than its fields, and
    a judge as the path of a file."""
    rules = definitions["RulesScorer"]["properties"]["rules"]
    definitions["RulesScorer"]["properties"]["rules"] = {
        "description": rules.get("description", ""),
        "anyOf": [
            {"type": "string", "minLength": 1},
            definitions["RuleSet"]["properties"]["rules"],
            {"$ref": "#/$defs/RuleSet"},
        ],
    }
    judge = definitions["JudgeScorer"]["properties"]["judge"]
    definitions["JudgeScorer"]["properties"]["judge"] = {
        "description": judge.get("description", ""),
        "anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/Judge"}],
    }


def user_row_schema(kind: DataKind[Any]) -> Schema:
    """A row of a user's file: like the record, but a prompt may be text, and the id may be left out."""
    schema = of_model(kind.record)
    properties = {name: schema["properties"][name] for name in kind.fields if name in schema["properties"]}
    properties["id"] = {
        "description": "Unique within the file. Left out, it is made from the row's content.",
        "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}],
    }
    messages = {"type": "array", "items": {"$ref": "#/$defs/Message"}, "minItems": 1}
    text = {"type": "string", "minLength": 1}
    if kind.has_prompt:
        properties["prompt"] = {
            "description": "A text, which is one user message, or the conversation up to the completion.",
            "anyOf": [text, messages],
        }
    for field in kind.completions:
        described = f"{properties[field]['description']} As text, or as messages that end with it."
        properties[field] = {"description": described, "anyOf": [text, messages]}
    forms = _forms(kind, properties)
    if "messages" in forms[-1]:
        ending = "a conversation that ends with the assistant" if kind.completions else "a conversation"
        properties["messages"] = {**messages, "description": f"Instead of {' and '.join(kind.sides)}: {ending}."}
    rows: Schema = {
        "description": f"{schema['description']} One row of a user's file.",
        "type": "object",
        "properties": properties,
        **({"required": forms[0]} if len(forms) == 1 else {"anyOf": [{"required": form} for form in forms]}),
    }
    if "$defs" in schema:
        properties["tools"] = {
            "description": "Functions that the assistant may call, as JSON schemas in OpenAI's form; as a list or as JSON text.",
            "anyOf": [{"type": "array", "items": {"type": "object"}}, {"type": "string"}, {"type": "null"}],
        }
        rows["$defs"] = {name: {**one, "additionalProperties": True} for name, one in schema["$defs"].items()}
        _as_users_write(rows["$defs"])
    return rows


def _as_users_write(definitions: Schema) -> None:
    """Beside tool calls, a content may be null or absent, and arguments may be JSON text."""
    message, function = definitions["Message"], definitions["FunctionCall"]["properties"]
    message["properties"]["content"] = {**message["properties"]["content"], "type": ["string", "null"]}
    message["required"] = ["role"]
    calls = message["properties"]["tool_calls"]
    message["properties"]["tool_calls"] = {**calls, "type": ["array", "null"]}
    function["arguments"] = {"description": function["arguments"]["description"], "type": ["object", "string"]}


def _forms(kind: DataKind[Any], properties: Schema) -> list[list[str]]:
    """The columns that a row needs, where they are called like our fields; several lists where it can be written in several ways.
    Of pairs without a prompt, chosen and rejected are whole conversations that begin alike."""
    named = [list(one.required) for one in kind.shapes if all(field in names for field, names in one.required.items())]
    known = [form for form in named if properties.keys() >= set(form) or form == ["messages"]]
    return [form for form in known if not any(set(other) < set(form) for other in known)]


def event_schema() -> Schema:
    """A line of events.jsonl; which fields it has depends on `kind`."""
    definitions: Schema = {}
    choices: list[Schema] = []
    for kind in KINDS:
        schema = without_titles(adapter_of(kind).json_schema(ref_template=DEFINITIONS))
        definitions.update(schema.pop("$defs", {}))
        head = {"version": {"const": EVENTS_VERSION}, "kind": {"const": kind}}
        # A writer always gives every field; what has a default in the code is for the convenience of the code.
        properties = {name: {k: v for k, v in field.items() if k != "default"} for name, field in schema["properties"].items()}
        definitions[kind] = {**schema, "properties": {**head, **properties}, "required": [*head, *properties]}
        choices.append({"if": {"properties": {"kind": {"const": kind}}}, "then": {"$ref": f"#/$defs/{kind}"}})
    return {
        "description": "An event of a run: one line of events.jsonl.",
        "type": "object",
        "properties": {"version": {"const": EVENTS_VERSION}, "kind": {"enum": list(KINDS)}},
        "required": ["version", "kind", "time"],
        "allOf": choices,
        "$defs": dict(sorted(definitions.items())),
    }


def all_schemas() -> dict[str, Schema]:
    """Every schema, by file name."""
    schemas = {"recipe": recipe_schema(), "manifest": of_model(Manifest), "results": of_model(Results), "events": event_schema()}
    schemas["machine"] = of_model(MachineSettings)
    for name, kind in ROW_KINDS.items():
        schemas[name] = user_row_schema(kind) if isinstance(kind, DataKind) else of_model(kind.record)
    return {f"{name}.schema.json": {"$schema": DIALECT, **schema} for name, schema in schemas.items()}


def render(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"


def drifted(folder: Path) -> list[str]:
    """Names of the files that are missing, out of date, or not ours."""
    wanted = {name: render(schema) for name, schema in all_schemas().items()}
    present = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description="Write data_schemas/ from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs from the code")
    check = parser.parse_args().check
    if check:
        different = drifted(FOLDER)
        for name in different:
            print(f"data_schemas/{name} differs from the code; run python scripts/build_schemas.py", file=sys.stderr)
        return 1 if different else 0
    FOLDER.mkdir(exist_ok=True)
    schemas = all_schemas()
    for name, schema in schemas.items():
        (FOLDER / name).write_text(render(schema), encoding="utf-8")
    print(f"{len(schemas)} schemas in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
