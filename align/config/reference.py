"""References: the fields of a stage that name an input or another stage.

A reference is a string whose type says which kinds of artifact fit, so that the graph, its order and every kind can be
checked from the configuration alone, before anything is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

FieldPath = tuple[str | int, ...]


class Reference(str):
    """The name of an input or a stage. Subclasses say which kinds of artifact they accept."""

    kinds: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(strict=True, min_length=1),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "x-artifact-kinds": list(cls.kinds)}


class ModelReference(Reference):
    kinds = ("model",)


class RewardModelReference(Reference):
    kinds = ("reward_model",)


class InstructionsReference(Reference):
    kinds = ("instructions",)


class PreferencesReference(Reference):
    kinds = ("preferences",)


class PromptsReference(Reference):
    kinds = ("prompts",)


class TextReference(Reference):
    kinds = ("text",)


class CandidatesReference(Reference):
    kinds = ("candidates",)


class ScoredCandidatesReference(Reference):
    kinds = ("scored_candidates",)


def iterate_references(value: Any, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Reference]]:
    """Every reference inside a configuration value, with its path, in field order."""
    if isinstance(value, Reference):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from iterate_references(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from iterate_references(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from iterate_references(item, (*path, index))
