"""Builds a recipe from the options of a command line."""

from __future__ import annotations

import copy
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from align.config.base import StrictModel
from align.config.checks import artifact_kind
from align.config.inputs import CANDIDATE_FIELDS, MANIFEST_NAME, ModelKind, data_kind_names
from align.config.reference import FieldPath, is_reference, kinds_of
from align.config.sections import RulesScorer
from align.config.shape import Members, is_list, is_mapping, members
from align.config.source import Document, Position, parse_text, read_document
from align.errors import RecipeError
from align.rows import data_kinds

SCORER_SUFFIXES = (".yaml", ".yml")
"""A file with rules, or with the fields of a judge."""


class StageRequest:
    """Builds the document of a recipe with one stage or several. The position of each value is the option that set it."""

    def __init__(
        self,
        stage: str,
        config_type: type[StrictModel],
        *,
        out: Path,
        seed: int,
        columns: Sequence[str],
        chat: str | None = None,
        command: str | None = None,
    ) -> None:
        """`command` is the name of the command in errors; default: `align stage` and the stage's name."""
        self._stage = stage
        self._config_type = config_type
        self._columns = columns
        self._columns_used: set[str] = set()
        self._chat = chat
        top = Position(0, 0, 0, command or f"align stage {stage}")
        self._document = Document({}, values={(): top})
        self._put(("name",), out.resolve().name, f"--out {out}")
        self._put(("seed",), seed, f"--seed {seed}")
        self._put(("inputs",), {}, str(top))
        self._put(("stages",), {stage: {"stage": stage}}, str(top))

    def another(self, stage: str, config_type: type[StrictModel]) -> StageRequest:
        """Add a stage to the same document; `finish` of any of them returns the whole document."""
        # A shallow copy: both write to the same document and note used --columns in the same set.
        other = copy.copy(self)
        other._stage, other._config_type = stage, config_type
        self._document.put(("stages", stage), {"stage": stage}, self._document.value_position(()))
        return other

    def name_stage(self, field: str, stage: str) -> None:
        """Set a field to another stage of the document."""
        self._put(("stages", self._stage, field), stage, str(self._document.value_position(())))

    def add_scorer(self, name: str, place: str, flag: str) -> None:
        """Give the stage a scorer: a reward model, or a file with rules or a judge."""
        path = ("stages", self._stage, "scorers")
        if "scorers" not in self._document.get(path[:-1]):
            self._put(path, {}, flag)
        self._set_scorer(path, f"{name}={place}", flag)

    def _put(self, path: FieldPath, value: Any, label: str) -> None:
        self._document.put(path, value, Position(0, 0, 0, label))

    def set_field(self, field: str, given: str | bool | list[str]) -> None:
        """Set a field to an option's value. References become inputs; everything else is parsed as in a recipe."""
        alternatives = members(self._config_type.model_fields[field].annotation)
        flag = f"--{field.replace('_', '-')}"
        path = ("stages", self._stage, field)
        if isinstance(given, bool):
            self._put(path, given, flag if given else f"--no-{flag[2:]}")
        elif isinstance(given, list) and any(is_mapping(alternative) for alternative in alternatives):
            self._put(path, {}, flag)
            (*_, entry_type), *_ = (members(get_args(alternative)[-1]) for alternative in alternatives if is_mapping(alternative))
            for text in given:
                if is_list(entry_type):
                    name, names = self._split(text, f"{flag} {text}")
                    self._put((*path, name), names.split(","), f"{flag} {text}")
                elif entry_type in (int, float):
                    name, number = self._split(text, f"{flag} {text}", expected="NAME=NUMBER")
                    self._put((*path, name), parse_text(number, label=flag, show_lines=False).value, f"{flag} {text}")
                elif is_reference(entry_type):
                    name, place = self._split(text, f"{flag} {text}")
                    added = self._add_input(name, place, kinds_of(entry_type), f"{flag} {text}")
                    self._put((*path, name), added, f"{flag} {text}")
                else:
                    self._set_scorer(path, text, f"{flag} {text}")
        elif isinstance(given, list):
            (entry_type,) = members(get_args(next(alternative for alternative in alternatives if is_list(alternative)))[0])
            label = f"{flag} {' '.join(given)}"
            if is_reference(entry_type):
                self._put(path, [self._named(text, kinds_of(entry_type), f"{flag} {text}") for text in given], label)
            else:
                self._put(path, [parse_text(text, label=f"{flag} {text}", show_lines=False).value for text in given], label)
        elif is_reference(alternatives[0]):
            label = f"{flag} {given}"
            self._put(path, self._single(field, given, alternatives, label), label)
        else:
            label = f"{flag} {given}"
            # An option of text takes it as it is: --scorer 5 means the scorer called 5.
            value = given if alternatives == (str,) else parse_text(given, label=label, show_lines=False).value
            self._put(path, value, label)

    def _single(self, field: str, given: str, alternatives: Members, label: str) -> Any:
        """The value of an option that takes one reference: rules, or the name of an input."""
        if RulesScorer in alternatives and given.endswith(SCORER_SUFFIXES):
            return {"rules": given}
        known = given in self._document.value["inputs"]
        return given if known else self._add_input(field, given, kinds_of(alternatives[0]), label)

    def _set_scorer(self, path: FieldPath, text: str, label: str) -> None:
        name, place = self._split(text, label)
        if place.endswith(SCORER_SUFFIXES):
            value: Any = {"judge" if _holds_judge(Path(place)) else "rules": place}
        else:
            value = self._add_input(name, place, ("reward_model",), label)
        self._put((*path, name), value, label)

    def _named(self, text: str, kinds: Sequence[str], label: str) -> str:
        """The name of an input written as NAME=PATH, or as PATH, whose last part then becomes the name."""
        name, place = self._split(text, label) if "=" in text else (Path(text).resolve().name, text)
        return self._add_input(name, place, kinds, label)

    @staticmethod
    def _split(text: str, label: str, *, expected: str = "NAME=PATH") -> tuple[str, str]:
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            raise RecipeError(f"{label}: expected {expected}")
        return name, place

    def _add_input(self, name: str, place: str, kinds: Sequence[str], label: str) -> str:
        """Add an input for a path and return its name. A path that is an input already keeps its earlier name."""
        spec = self._input_spec(place, kinds)
        inputs = self._document.value["inputs"]
        # One path is one input, however many options name it: it is read once and has one fingerprint.
        for known, other in inputs.items():
            if other == spec:
                return str(known)
        if name in inputs:
            raise RecipeError(f"{label}: '{name}' is given twice, with different paths")
        self._put(("inputs", name), spec, label)
        return name

    def _input_spec(self, place: str, kinds: Sequence[str]) -> dict[str, Any]:
        folder = Path(place).expanduser()
        # A result of align says its kind itself, whatever the option expects; the recipe's checks compare the two.
        if (folder / MANIFEST_NAME).is_file():
            return {"kind": artifact_kind(folder) or kinds[0], "artifact": place}
        is_direct = kinds[0] in (*get_args(ModelKind), *data_kind_names())
        if not is_direct and not (kinds[0] == "scored_candidates" and _holds_files(folder)):
            return {"kind": kinds[0], "artifact": place}
        spec: dict[str, Any] = {"kind": kinds[0], "path": place}
        if columns := self._columns_of(kinds[0]):
            spec["columns"] = columns
        return spec

    def _columns_of(self, kind: str) -> dict[str, str]:
        """The --columns options that apply to this kind of row."""
        columns = {}
        for text in self._columns:
            field, equals, column = text.partition("=")
            if not equals or not column:
                raise RecipeError(f"--columns {text}: expected FIELD=COLUMN, such as prompt=Question")
            if field in _fields(kind) or (kind == "scored_candidates" and field.startswith("scores.")):
                columns[field] = column
                self._columns_used.add(text)
        return columns

    def finish(self) -> Document:
        """The finished document; call it after every option is set."""
        unused = [text for text in self._columns if text not in self._columns_used]
        if unused:
            kinds = {spec["kind"] for spec in self._document.value["inputs"].values()}
            fields = sorted({field for kind in kinds for field in _fields(kind)})
            field, _, column = unused[0].partition("=")
            if column in fields:
                hint = f"The field comes first, then the file's column: --columns {column}={field}"
                raise RecipeError(f"--columns {unused[0]}: this is the wrong way round", hint=hint)
            raise RecipeError(f"--columns {unused[0]}: no data file here has that field; fields: {', '.join(fields) or 'none'}")
        self._set_chat()
        # A stage and its data inputs have an on_invalid each; the one option sets them all.
        on_invalid = self._document.value["stages"][self._stage].get("on_invalid")
        for spec in self._document.value["inputs"].values():
            if on_invalid is not None and spec["kind"] in data_kind_names() and "path" in spec:
                spec["on_invalid"] = on_invalid
        return self._document

    def _set_chat(self) -> None:
        """Give what --chat says to every language model that is no result of align; those have their own settings."""
        if self._chat is None:
            return
        label = f"--chat {self._chat}"
        inputs = self._document.value["inputs"]
        models = [name for name, spec in inputs.items() if spec["kind"] == "model" and "path" in spec]
        if not models:
            raise RecipeError(
                f"{label}: no model here takes it; a model that align trained renders its conversations as in training",
                hint="Leave --chat out.",
            )
        for name in models:
            self._put(("inputs", name, "chat"), parse_text(self._chat, label=label, show_lines=False).value, label)


def _fields(kind: str) -> Sequence[str]:
    """The fields of a kind of row that --columns can map."""
    if kind == "scored_candidates":
        return CANDIDATE_FIELDS
    return data_kinds()[kind].fields if kind in data_kinds() else ()


def _holds_files(place: Path) -> bool:
    """Whether scored candidates are given as files rather than as a result of align."""
    if place.suffix in (".parquet", ".jsonl") or place.is_file() or glob.has_magic(str(place)):
        return True
    return any(place.glob("*.parquet")) or any(place.glob("*.jsonl"))


def _holds_judge(file: Path) -> bool:
    """Whether a file describes a judge. An unreadable file counts as no judge here: its use reports the error."""
    try:
        content = read_document(file.expanduser()).value
    except RecipeError:
        return False
    return isinstance(content, dict) and "base_url" in content
