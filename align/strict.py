"""The base of every model that reads what people or programs wrote: recipes, rows, settings."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
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
