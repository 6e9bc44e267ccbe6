from __future__ import annotations

from pydantic import BaseModel, Field

from align.strict import Strict, field_docstrings


class Base(Strict):
    width: int
    """How wide
    it is."""
    height: int = 1
    """How high it is."""
    bare: int = 2


class Derived(Base):
    height: int = 3
    """Higher than others."""
    named: int = Field(default=4, description="As the field says.")
    """Not this."""


def test_docstrings_of_a_subclass_win() -> None:
    assert field_docstrings(Derived) == {
        "width": "How wide\nit is.",
        "height": "Higher than others.",
        "named": "Not this.",
    }


def test_docstrings_are_the_descriptions_of_the_schema() -> None:
    class Holder(BaseModel):
        inner: Derived

    properties = Holder.model_json_schema()["$defs"]["Derived"]["properties"]
    assert {name: field.get("description") for name, field in properties.items()} == {
        "width": "How wide\nit is.",
        "height": "Higher than others.",
        "bare": None,
        "named": "As the field says.",
    }


def test_a_class_is_made_without_reading_its_source() -> None:
    # pydantic's use_attribute_docstrings would fill it, and takes longer than the import of the module.
    assert Base.model_fields["width"].description is None
