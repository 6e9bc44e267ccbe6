"""The base of every configuration model: strict, frozen, documented by the docstring under each field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import model_validator

from align.config.reference import FieldPath, iterate_parts
from align.strict import Strict


class Problem(NamedTuple):
    """One thing that is wrong with a value of a document."""

    path: FieldPath
    text: str
    at_key: bool = False
    """Whether the key is wrong rather than its value."""
    missing_key: bool = False
    instead_of: str | None = None
    """For an unknown key: the key that was probably meant."""


class ExecutionMark:
    """Metadata of an `ExecutionOnly` field."""


T = TypeVar("T")
ExecutionOnly = Annotated[T, ExecutionMark()]
"""Type of a field that says how the work is done (number of workers, steps between checkpoints) and cannot change a byte of the
result; it stays out of fingerprints."""


class StrictModel(Strict):
    """A part of a configuration."""

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        """Problems of fields that do not agree with each other; paths begin at the stage. Overriders yield from `super()` too.

        Called with a stage's fields as they were written, so that a message can name the line; and by the validator below, so
        that code which builds a configuration is held to the same rules. Values may be of any type: problems of type are reported
        elsewhere.

        Args:
            fields: the stage's fields that are set, by name.
        """
        yield from ()

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for problem in self.check_fields({name: getattr(self, name) for name in self.model_fields_set}):
            raise ValueError(f"{'.'.join(map(str, problem.path))}: {problem.text}")
        return self


def execution_fields(model: type[StrictModel]) -> list[str]:
    """Names of the `ExecutionOnly` fields, in their order; not those of models inside it."""
    return [name for name, info in model.model_fields.items() if any(isinstance(item, ExecutionMark) for item in info.metadata)]


def execution_paths(value: Any) -> Iterator[FieldPath]:
    """The path of every execution field in a configuration, those of models inside it included."""
    for path, part in iterate_parts(value):
        if isinstance(part, StrictModel):
            yield from ((*path, name) for name in execution_fields(type(part)))
