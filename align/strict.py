"""What reads what people or programs wrote: the base of every model of recipes, rows and settings, and JSON without surprises."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Strict(BaseModel):
    """Unknown keys are errors, values are not coerced across types, and an instance never changes.

    The docstring under a field is its description in JSON Schemas.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        # A command checks with a few of the models that it imports.
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, text in field_docstrings(cls).items():
            properties[name].setdefault("description", text)
        return schema


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field that has one, by the field's name.

    pydantic's `use_attribute_docstrings` would read the sources whenever the module is imported, which takes longer than the rest
    of the import.
    """
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Strict):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            for field, below in itertools.pairwise(definition.body):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[name] = inspect.cleandoc(text)
    return {name: found[name] for name in model.model_fields if name in found}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook` of `json.loads`: a key given twice would lose a value in silence.

    Raises:
        ValueError: naming the key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return found


def no_constant(name: str) -> None:
    """For `parse_constant` of `json.loads`: Python takes NaN and Infinity for JSON.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is not JSON")
