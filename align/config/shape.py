"""Walks a plain value along the types that will validate it, to explain problems of an invalid document."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from align.config.reference import FieldPath, is_reference, kinds_of

Members = tuple[Any, ...]
"""The types that a value may have, without None: one, or those of a union."""


def members(annotation: Any) -> Members:
    """The alternatives of a type, with `Annotated`, unions and None taken away."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(inner for part in get_args(annotation) for inner in members(part))
    return () if annotation is type(None) else (annotation,)


def is_model(annotation: Any) -> bool:
    """Whether a field of this type holds a section of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_list(annotation: Any) -> bool:
    """Whether it is `list[...]`; a bare `list` is not."""
    origin: Any = get_origin(annotation)
    return origin is list


def is_mapping(annotation: Any) -> bool:
    """Whether it is `dict[...]`; a bare `dict` is not."""
    origin: Any = get_origin(annotation)
    return origin is dict


def fitting_model(alternatives: Members, value: Any) -> type[BaseModel] | None:
    """The model that a mapping is meant for: its literal fields (`type: length`) have the mapping's values.

    Of several such models, one that has a key of the mapping comes first.
    """
    if not isinstance(value, dict):
        return None
    # False sorts first. The sort is stable, so models that match equally keep the order of the union.
    models = sorted(_models(alternatives), key=lambda model: not value.keys() & model.model_fields.keys())
    for model in models:
        if all(value[name] in choices for name, choices in _literals(model).items() if name in value):
            return model
    # No model fits: the first one still serves to explain the problem.
    return models[0] if models else None


@cache
def _models(alternatives: Members) -> tuple[type[BaseModel], ...]:
    return tuple(alternative for alternative in alternatives if is_model(alternative))


@cache
def _literals(model: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """What its literal fields may be, by name."""
    annotations = {name: info.annotation for name, info in model.model_fields.items()}
    return {name: get_args(annotation) for name, annotation in annotations.items() if get_origin(annotation) is Literal}


def below(alternatives: Members, value: Any, key: str | int) -> Members:
    """The types of the entry `key` of `value`, present or not; empty for an unknown key."""
    model = fitting_model(alternatives, value)
    if model is not None:
        info = model.model_fields.get(str(key))
        return members(info.annotation) if info else ()
    for alternative in alternatives:
        if (is_list(alternative) and isinstance(value, list)) or (is_mapping(alternative) and isinstance(value, dict)):
            return members(get_args(alternative)[-1])
        # A model that also takes a bare list (a rule set) is walked as if the list were its only field.
        if is_model(alternative) and isinstance(value, list) and len(alternative.model_fields) == 1:
            return below(members(next(iter(alternative.model_fields.values())).annotation), value, key)
    return ()


def follow(alternatives: Members, value: Any, path: FieldPath) -> tuple[Members, Any]:
    """The types and the value at `path`; the value is None where there is none."""
    for key in path:
        alternatives = below(alternatives, value, key)
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            value = None
    return alternatives, value


def walk(
    alternatives: Members, value: Any, path: FieldPath = (), *, enter: Callable[[Members], bool] = lambda _: True
) -> Iterator[tuple[FieldPath, Members, Any]]:
    """Every part of a value with its path and the types it may have; none of the parts of types that are not to be entered."""
    if not enter(alternatives):
        return
    yield path, alternatives, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from walk(below(alternatives, value, key), inner, (*path, key), enter=enter)


@cache
def _lead_to_references(alternatives: Members) -> bool:
    """Whether a value of one of these types can hold the name of an artifact: a set of rules cannot, however many it has."""
    seen: set[Any] = set()
    pending = list(alternatives)
    while pending:
        alternative = pending.pop()
        if is_reference(alternative):
            return True
        if is_model(alternative) and alternative not in seen:
            seen.add(alternative)
            pending += [inner for info in alternative.model_fields.values() for inner in members(info.annotation)]
        else:
            pending += [inner for argument in get_args(alternative) for inner in members(argument)]
    return False


def references_in(config_type: type[BaseModel], value: Any) -> Iterator[tuple[FieldPath, Any, str]]:
    """Every text of a document that stands where a reference is read: path, type of the reference (see `kinds_of`), name."""
    for path, alternatives, part in walk((config_type,), value, enter=_lead_to_references):
        for alternative in alternatives:
            if is_reference(alternative) and isinstance(part, str) and part:
                yield path, alternative, part
                break


def reference_kinds(config_type: type[BaseModel]) -> frozenset[str]:
    """Every kind of artifact that some field of a configuration can name."""
    kinds: set[str] = set()
    pending = [info.annotation for info in config_type.model_fields.values()]
    while pending:
        for alternative in members(pending.pop()):
            if is_reference(alternative):
                kinds.update(kinds_of(alternative))
            elif arguments := get_args(alternative):  # a list or a mapping
                pending.append(arguments[-1])
    return frozenset(kinds)
