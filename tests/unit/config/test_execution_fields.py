"""Fields that only say how the work is done."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from align.config.base import ExecutionOnly, StrictModel, execution_fields, execution_paths


class Endpoint(StrictModel):
    address: str = "here"
    timeout_seconds: ExecutionOnly[float | None] = None


class Shared(StrictModel):
    num_workers: ExecutionOnly[int] = Field(default=1, ge=1)


class Work(Shared):
    beta: float = 0.1
    endpoint: Endpoint = Endpoint()
    by_name: dict[str, Endpoint | str] = Field(default_factory=dict)


def test_a_field_is_marked_where_it_is_declared_and_inherited_with_its_mark() -> None:
    assert execution_fields(Shared) == execution_fields(Work) == ["num_workers"]
    assert execution_fields(Endpoint) == ["timeout_seconds"]


def test_paths_lead_into_models_and_dictionaries_of_models() -> None:
    work = Work(by_name={"a": Endpoint(), "b": "plain"})
    assert set(execution_paths(work)) == {
        ("num_workers",),
        ("endpoint", "timeout_seconds"),
        ("by_name", "a", "timeout_seconds"),
    }


def test_the_mark_changes_neither_bounds_nor_schema() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Work(num_workers=0)
    assert Work.model_json_schema()["properties"]["num_workers"] == {
        "default": 1,
        "minimum": 1,
        "title": "Num Workers",
        "type": "integer",
    }
