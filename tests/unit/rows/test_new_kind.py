"""A kind of rows that exists only here is read, checked, shown, converted and named by recipes, from its entry alone."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import create_model

from align.cli.main import main
from align.config.inputs import DataInput
from align.config.recipe import Recipe, parse_recipe
from align.config.reference import RowsReference
from align.data.evaluation import evaluation_index
from align.data.ingest import ingest
from align.data.source import find_source
from align.data.template import ChatFormat
from align.errors import RecipeError
from align.pipeline.estimate.lengths import row_lengths
from align.pipeline.inputs import resolve_inputs
from align.records import Instruction, PromptRecord
from align.report.dataset.collect import inspect_source
from align.report.dataset.tokens import TrainingView
from align.report.dataset.view import sample_views
from align.rows import ROW_KINDS, DataKind, register
from align.rows.build import Builder, Part
from align.rows.fields import Columns, Problems, Row, required
from align.rows.problem import FieldProblem, shown
from align.rows.shapes import Shape
from align.stage import StageConfig
from align.store.artifact import Store
from align.testing.tiny import tiny_tokenizer


class Tagged(PromptRecord):
    """A prompt and a completion that is good or bad by itself."""

    completion: str
    """The assistant's answer."""
    tag: bool
    """Whether it is good."""


def tagged(builder: Builder, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
    """Rows of prompt, completion and tag."""
    prompt = builder.take.prompt(row, columns, problems)
    completion = builder.take.completion("completion", row, columns, prompt, problems)
    tag = required("tag", row, columns)
    if not isinstance(tag, bool):
        problems.append(FieldProblem("tag", "wrong_type", f"must be true or false, but is {shown(tag)}"))
    return (("", {"prompt": prompt[0], "completion": completion, "tag": tag}),)


TAGGED = DataKind(
    "tagged",
    Tagged,
    "tagged completions",
    shapes=(Shape("tagged", tagged, {"prompt": ("prompt",), "completion": ("completion",), "tag": ("tag",)}),),
    completions=("completion",),
    details=("tag",),
    contradiction="conflicting_labels",
)
GOOD, BAD = (
    {"prompt": "Say hello.", "completion": "Hello!", "tag": True},
    {"prompt": "Sing.", "completion": "No.", "tag": False},
)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(TAGGED)
    yield
    del ROW_KINDS[TAGGED.name]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _write(tmp_path / "rows.jsonl", [GOOD, BAD])


def _write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    main([*map(str, arguments), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_its_rows_are_read_into_the_store_and_out_of_it(file: Path, tmp_path: Path) -> None:
    spec = DataInput(kind="tagged", path=str(file))
    folder = tmp_path / "entry"
    folder.mkdir()
    asked = DataInput(kind="prompts", path=str(_write(tmp_path / "asked.jsonl", [{"prompt": "Would you sing?"}])))
    index = evaluation_index([(find_source(asked, Path), asked)])
    assert ingest(spec, find_source(spec, Path), folder, evaluation=index).rows_out == 2
    first = Tagged.model_validate_json((folder / "rows.jsonl").read_text().splitlines()[0])
    assert (first.prompt[0].content, first.completion, first.tag, first.line) == ("Say hello.", "Hello!", True, 1)


def test_its_kind_is_told_by_its_columns_and_its_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [GOOD, BAD, {**GOOD, "tag": "yes"}, {"prompt": "Hi", "tag": True}, BAD, {**GOOD, "tag": False}]
    found = _json(capsys, "data", "validate", _write(tmp_path / "x.jsonl", rows))
    assert found["kind"] == "tagged"
    assert [(one["line"], one["field"], one["reason"]) for one in found["problems"]] == [
        (3, "tag", "wrong_type"),
        (4, "completion", "missing_field"),
    ]
    checks = {one["name"]: one["count"] for one in found["checks"]}
    assert (checks["repeated_rows"], checks["conflicting_labels"]) == (1, 1)


def test_its_contradictions_can_be_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _write(tmp_path / "x.jsonl", [GOOD, BAD, {**GOOD, "tag": False}])
    found = _json(capsys, "data", "validate", rows, "--kind", "tagged", "--check", "conflicting_labels=error")
    assert [(one["line"], one["field"], one["reason"]) for one in found["problems"]] == [
        (1, "tag", "conflicting_labels"),
        (3, "tag", "conflicting_labels"),
    ]


def test_it_is_seen_through_a_models_template(file: Path) -> None:
    chat_format = ChatFormat(tiny_tokenizer(["hello"]), where="tiny")
    training = TrainingView(chat_format, model="tiny", limit=1000)
    facts = inspect_source(DataInput(kind="tagged", path=str(file)), training=training, samples=2, seed=1)
    assert list(facts.characters) == ["prompt", "completion"]
    assert facts.tokens is not None and facts.tokens.rows.rows == 2
    views = sample_views(facts, training)
    assert [[part.name for part in view.parts] for view in views] == [["completion"], ["completion"]]
    plain = sample_views(facts, None)[0].parts
    assert [(part.name, part.pieces[0].text) for part in plain] == [
        ("user", "Say hello."),
        ("completion", "Hello!"),
        ("tag", "True"),
    ]


def test_a_models_checks_see_it(tmp_path: Path) -> None:
    from align.data.model_checks import ModelChecks
    from align.data.validation import RowRules, validate_source
    from align.data.validation.summary import Problem

    source = find_source(
        DataInput(kind="tagged", path=str(_write(tmp_path / "x.jsonl", [GOOD, {**BAD, "completion": "<|im_start|>"}]))), Path
    )
    problems: list[Problem] = []
    checks = ModelChecks(ChatFormat(tiny_tokenizer(["hello"]), where="tiny"))
    validate_source(source, RowRules(TAGGED), on_problem=problems.append, model_checks=checks)
    assert [(problem.line, problem.field, problem.reason) for problem in problems] == [(2, "completion", "special_tokens")]


def test_there_and_back_through_parquet(file: Path, tmp_path: Path) -> None:
    parquet, again = tmp_path / "rows.parquet", tmp_path / "again.jsonl"
    for source, target in ((file, parquet), (parquet, again)):
        assert main(["data", "convert", str(source), "--kind", "tagged", "--to", str(target)]) == 0
    rows = [json.loads(line) for line in again.read_text().splitlines()]
    assert [(row["completion"], row["tag"]) for row in rows] == [("Hello!", True), ("No.", False)]


def test_its_rows_have_a_schema() -> None:
    path = Path(__file__).resolve().parents[3] / "scripts" / "build_schemas.py"
    spec = importlib.util.spec_from_file_location("build_schemas", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    schemas = script.all_schemas()
    validator = jsonschema.Draft202012Validator(schemas["tagged.schema.json"])
    assert validator.is_valid(GOOD)
    assert not validator.is_valid({"prompt": "Hi", "completion": "Hello"})
    recipe = jsonschema.Draft202012Validator(schemas["recipe.schema.json"])
    stages = {"s": {"stage": "sft", "model": "m", "data": "d"}}
    for kind, is_valid in (("tagged", True), ("labels", False)):
        assert recipe.is_valid({"name": "x", "inputs": {"d": {"kind": kind, "path": "d.jsonl"}}, "stages": stages}) is is_valid


@dataclass(frozen=True)
class StageTypeStub:
    """A stage that takes tagged rows."""

    config_type: Any
    name: str = "kto"
    produces: str = "model"


def _recipe(folder: Path, data: str) -> Recipe:
    config = create_model("Config", __base__=StageConfig, data=(RowsReference[Tagged], ...))
    (folder / "recipe.yaml").write_text(
        "name: x\ninputs:\n  rows: {kind: tagged, path: rows.jsonl}\n  pairs: {kind: preferences, path: rows.jsonl}\n"
        f"stages:\n  kto: {{stage: kto, data: {data}}}\n"
    )
    return parse_recipe(folder, stage_types={"kto": StageTypeStub(config)})


def test_a_stage_of_a_recipe_takes_it_by_reference(file: Path, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "rows")
    assert recipe.stages["kto"].references == ((("data",), "rows"),)
    resolved = resolve_inputs(recipe, Store(tmp_path / "store"))[0]["rows"]
    tokenizer = tiny_tokenizer(["hello"])
    tokenizer.save_pretrained(tmp_path / "model")
    lengths = row_lengths(resolved, tmp_path / "model")
    assert lengths is not None and [len(length.completions) for length in lengths] == [1, 1]
    with pytest.raises(RecipeError, match="wants tagged completions, but 'pairs' holds preferences"):
        _recipe(tmp_path, "pairs")


def test_an_entry_that_does_not_fit_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="there is a kind of rows with the name tagged"):
        register(TAGGED)
    with pytest.raises(TypeError, match="the record Instruction"):
        register(DataKind("taken", Instruction, "x", TAGGED.shapes, ("completion",), (), None))
    with pytest.raises(TypeError, match="kind tagged: .* Tagged .*'answer'"):
        replace(TAGGED, completions=("answer",))
    with pytest.raises(TypeError, match="contradiction"):
        DataKind("short", Tagged, "x", TAGGED.shapes, ("completion",), ())  # type: ignore[call-arg]
