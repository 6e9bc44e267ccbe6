"""The inputs of a recipe: models and data, on disk or on a hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema, core_schema

from align.config.base import StrictModel
from align.config.chat import ChatSettings
from align.config.paths import hub_id_in, is_written_as_path
from align.config.row_checks import Action, check_actions
from align.config.sections import OnInvalid
from align.rows import ROW_KINDS, DataKind, data_kinds

ModelKind = Literal["model", "reward_model"]


@dataclass(frozen=True)
class OneOf:
    """A text that must be one of some names. They are looked up when they are needed, since kinds of rows can be registered."""

    names: Callable[[], Sequence[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.names()), "type": "string"}

    def _check(self, value: str) -> str:
        if value not in self.names():
            raise ValueError(f"expected {self.describe()}, got '{value}'")
        return value

    def describe(self) -> str:
        """`one of prompts, text`."""
        return f"one of {', '.join(self.names())}"


def data_kind_names() -> tuple[str, ...]:
    """Kinds of rows that can be read from files."""
    return tuple(data_kinds())


def artifact_kind_names() -> tuple[str, ...]:
    """Everything that a stage can make or an input can be."""
    return (*get_args(ModelKind), *ROW_KINDS, "comparison")


PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
"""Name of a mixture's part; the ids of its rows begin with it."""

ADAPTER_KINDS = {"model": "adapter", "reward_model": "reward_adapter"}
"""Kind in an adapter's manifest, by its kind in recipes, where an adapter is used like a whole model."""


def _check_id(text: str | None, key: str) -> None:
    """Refuse an id on the hub that is a path or an address."""
    if text is None:
        return
    if (hub_id := hub_id_in(text)) and hub_id != text:
        raise ValueError(f"{key} is the id alone: did you mean '{key}: {hub_id}'?")
    owner, _, subset = text.rpartition("/")
    if key == "dataset" and hub_id_in(owner) == owner and "." not in subset:
        raise ValueError(f"dataset is owner/name: did you mean 'dataset: {owner}, subset: {subset}'?")
    if is_written_as_path(text):
        raise ValueError(f"{key} is an id on the hub, and '{text}' a path: did you mean 'path: {text}'?")


class ModelInput(StrictModel):
    """A model: a local folder, or a hub id with a revision."""

    kind: ModelKind
    """What the folder holds."""
    path: str | None = None
    """Local folder, relative to the recipe."""
    hub_id: str | None = None
    """Repository on the hub; fetched once and pinned by commit hash."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    chat: ChatSettings | None = None
    """Chat format, if the model's own files lack it or you want another."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelInput:
        _check_id(self.hub_id, "hub_id")
        if (self.path is None) == (self.hub_id is None):
            raise ValueError("give either path or hub_id")
        if (self.hub_id is None) != (self.revision is None):
            raise ValueError("hub_id and revision go together (revision: main, a tag or a commit)")
        return self


Subset = Annotated[str | None, Field(exclude_if=lambda value: value is None)]
"""Left out of what is written where there is none: datasets without subsets have the fingerprint that they always had."""
MaxRows = Annotated[int | None, Field(ge=1, exclude_if=lambda value: value is None)]
"""Likewise."""
Position = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[list[Position] | None, Field(min_length=2, max_length=2, exclude_if=lambda value: value is None)]
"""Likewise."""


def _check_place(path: str | None, dataset: str | None, split: str | None, subset: str | None, max_rows: int | None) -> None:
    """Refuse a place of rows that is not exactly a path, or a dataset with its split."""
    _check_id(dataset, "dataset")
    if (path is None) == (dataset is None):
        raise ValueError("give either path or dataset")
    if (dataset is None) != (split is None):
        raise ValueError("dataset and split go together (split: train)")
    if dataset is None and subset is not None:
        raise ValueError("subset goes with dataset")
    if max_rows is not None and "[" in (split or ""):
        raise ValueError(f"max_rows counts from the first row of a split: write split: {(split or '').partition('[')[0]}")


class MixturePart(StrictModel):
    """One part of a mixture: where its rows are, and which share of the mixture they make."""

    weight: float = Field(gt=0)
    """Share of the mixture's rows; only the proportion between the parts counts."""
    path: str | None = None
    """Local file, folder or glob, relative to the recipe."""
    dataset: str | None = None
    """Dataset id on the hub."""
    subset: Subset = None
    """Subset of the hub dataset, where it has several (its `config_name`)."""
    split: str | None = None
    """Split of the hub dataset, or a part of it: train, train[:5000]."""
    revision: str | None = None
    """Branch, tag or commit of the hub dataset."""
    max_rows: MaxRows = None
    """Read only the first rows, at most this many; of a hub dataset, the rest is not downloaded."""
    columns: dict[str, str] = Field(default_factory=dict)
    """align's field → column of this part, where the names differ."""

    @model_validator(mode="after")
    def _one_source(self) -> MixturePart:
        _check_place(self.path, self.dataset, self.split, self.subset, self.max_rows)
        return self


class DataInput(StrictModel):
    """Rows: local files, a hub dataset with a split, or a mixture of several of these."""

    kind: Annotated[str, OneOf(data_kind_names)]
    """What a row holds."""
    path: str | None = None
    """Local file, folder or glob, relative to the recipe: .jsonl, .json, .csv, .tsv, .txt (also .gz), .parquet or .arrow."""
    dataset: str | None = None
    """Dataset id on the hub."""
    subset: Subset = None
    """Subset of the hub dataset, where it has several (its `config_name`)."""
    split: str | None = None
    """Split of the hub dataset, or a part of it: train, train[:5000]."""
    revision: str | None = None
    """Branch, tag or commit of the hub dataset."""
    max_rows: MaxRows = None
    """Read only the first rows, at most this many; of a hub dataset, the rest is not downloaded."""
    share: Share = None
    """Take only a share of the prompts: [0, 0.5] and [0.5, 1] are halves that have no prompt in common. A hash of the prompt (of
    kind text, of the text) decides, not the order of the rows."""
    mixture: dict[PartName, MixturePart] | None = Field(default=None, min_length=1)
    """Several sources by name, each with its weight; no row is taken twice."""
    columns: dict[str, str] = Field(default_factory=dict)
    """align's field → column of the file, where the names differ: {prompt: Q, completion: A}."""
    on_invalid: OnInvalid = "error"
    """What to do with a row that cannot be used: stop and name it, or drop and count it."""
    checks: dict[str, Action] = Field(default_factory=dict)
    """What to do about a single check, by its name in docs/data.md: {repeated_rows: drop, near_duplicate: error}."""
    decontaminate: list[str] = Field(default_factory=list)
    """Inputs of the kind prompts: rows that overlap one of their prompts are dropped and counted."""
    max_characters: int = Field(default=100_000, ge=1)
    """Most characters of a text; a row with a longer one cannot be used."""

    @field_validator("checks")
    @classmethod
    def _known_checks(cls, value: dict[str, Action]) -> dict[str, Action]:
        check_actions(value, with_model=False)
        return value

    @field_validator("share", mode="before")
    @classmethod
    def _two_numbers(cls, value: object) -> object:
        if value is None or (isinstance(value, list) and len(value) == 2):
            return value
        raise ValueError(f"expected two numbers, as in [0, 0.5], which is a half; got {value}")

    @field_validator("share")
    @classmethod
    def _not_empty(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"{value} is empty: the first number must be below the second, as in [0, 0.5], which is a half")
        return value

    @property
    def row_kind(self) -> DataKind[Any]:
        """What its rows are."""
        return data_kinds()[self.kind]

    @model_validator(mode="after")
    def _one_source(self) -> DataInput:
        if self.mixture is None:
            _check_place(self.path, self.dataset, self.split, self.subset, self.max_rows)
        elif beside := [name for name in MixturePart.model_fields if getattr(self, name, None) not in (None, {})]:
            raise ValueError(f"a mixture has {' and '.join(beside)} in each of its parts, not beside them")
        return self


CANDIDATE_FIELDS = ("prompt_id", "prompt", "completion", "candidate_index", "finish_reason", "scores", "score")
"""What a row of scored candidates may have, besides a column `scores.NAME` per scorer."""


class CandidatesInput(StrictModel):
    """Scored candidates in files of any size, which are read where they lie."""

    kind: Literal["scored_candidates"]
    """What a row holds."""
    path: str = Field(min_length=1)
    """Local file, folder or glob, relative to the recipe: .parquet or .jsonl."""
    columns: dict[str, str] = Field(default_factory=dict)
    """align's field → column of the file, where the names differ: {completion: text, scores.rm: reward}."""

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = [name for name in value if name not in CANDIDATE_FIELDS and not name.startswith("scores.")]
        if unknown:
            raise ValueError(f"'{unknown[0]}' is no field of scored candidates: {', '.join(CANDIDATE_FIELDS)}, scores.NAME")
        return value


MANIFEST_NAME = "manifest.json"
"""File that proves a folder to be a finished result."""


class ArtifactInput(StrictModel):
    """What a stage of another run made."""

    kind: Annotated[str, OneOf(artifact_kind_names)]
    """What the folder holds."""
    artifact: str = Field(min_length=1)
    """Folder with a manifest.json that align wrote, relative to the recipe: runs/<recipe>/stages/<stage>."""


InputSpec = Annotated[ModelInput | DataInput | CandidatesInput | ArtifactInput, Field(union_mode="smart")]

AnyInput = ModelInput | DataInput | CandidatesInput | ArtifactInput
