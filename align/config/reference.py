"""References: the fields of a stage that name an input or another stage.

A reference is a string whose type says which kinds of artifact fit, so that the graph, its order and every kind can be
checked from the configuration alone, before anything is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from align.rows import kind_of
from align.strict import Strict

FieldPath = tuple[str | int, ...]
RowT = TypeVar("RowT", bound=Strict)


class Reference(str):
    """The name of an input or a stage. `kinds_of` says which kinds of artifact an annotation accepts."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(strict=True, min_length=1),
            # For editors and tools that read the schema: which kinds fit.
            metadata={"pydantic_js_extra": {"x-artifact-kinds": list(kinds_of(source))}},
        )


class ModelReference(Reference):
    """The name of a model."""


class RewardModelReference(Reference):
    """The name of a reward model."""


class RowsReference(Reference, Generic[RowT]):
    """The name of rows: `RowsReference[Preference]`, or of one of several records, `RowsReference[Labelled | Preference]`."""


_MODEL_KINDS: Mapping[Any, str] = {ModelReference: "model", RewardModelReference: "reward_model"}


def is_reference(annotation: Any) -> bool:
    """Whether values of a type are references."""
    # `RowsReference[Preference]` is a generic alias, not a class.
    written = get_origin(annotation) or annotation
    return isinstance(written, type) and issubclass(written, Reference)


def kinds_of(annotation: Any) -> tuple[str, ...]:
    """The kinds of artifact that a reference of this type may name.

    Raises:
        TypeError: if it is the reference of a record that no kind of rows has.
    """
    if annotation in _MODEL_KINDS:
        return (_MODEL_KINDS[annotation],)
    return tuple(kind_of(record).name for one in get_args(annotation) for record in get_args(one) or (one,))


def iterate_parts(value: Any, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """A configuration value and everything inside it, each with its path, in field order."""
    yield path, value
    entries: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, BaseModel):
        entries = ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, (list, tuple)):
        entries = enumerate(value)
    for key, item in entries:
        yield from iterate_parts(item, (*path, key))


def iterate_references(value: Any) -> Iterator[tuple[FieldPath, Reference]]:
    """Every reference inside a configuration value, with its path, in field order."""
    return ((path, part) for path, part in iterate_parts(value) if isinstance(part, Reference))
