"""Every row that docs/formats.md shows can be read, and every shape there is has one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.data.reader import FORMATS
from align.records import RECORD_TYPES
from align.rows.row import RowReader
from align.rows.shapes import FIELDS, SHAPES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def _rows(kind: str) -> Iterator[dict[str, Any]]:
    section = re.split(r"^#{2,3} ", PAGE.split(f"### {kind.capitalize()}\n")[1], flags=re.MULTILINE)[0]
    for block in re.findall(r"^```json\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        text = block.strip()
        while text:
            row, end = json.JSONDecoder().raw_decode(text)
            yield row
            text = text[end:].strip()


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_has_a_row_that_can_be_read(kind: str) -> None:
    shapes = set()
    for row in _rows(kind):
        reader = RowReader(kind, {}, 1000)
        read = reader.read(row)
        assert not read.faults, row
        for suffix, fields in read.parts:
            assert isinstance(fields, dict)
            RECORD_TYPES[kind].model_validate({"id": f"a{suffix}", **fields})
        shapes.update(reader.reading().shapes)
    assert shapes == {shape.name for shape in SHAPES[kind]}


def test_every_column_format_and_field_is_named() -> None:
    stems = ("completion", "output", "response", "answer", "conversation")
    sides = {f"{stem}_{end}" for stem in stems for end in "ab012"}
    for kind, shapes in SHAPES.items():
        for shape in shapes:
            columns = {name for names in (*shape.required.values(), *shape.optional.values()) for name in names}
            assert sorted(name for name in columns - sides if f"`{name}`" not in PAGE) == [], f"{kind}: {shape.name}"
    assert [ending for ending in FORMATS if f"`{ending}`" not in PAGE] == []
    assert {name for names in FIELDS.values() for name in names if f"`{name}`" not in PAGE} == set()
