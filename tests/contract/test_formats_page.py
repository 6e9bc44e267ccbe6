"""Every row that docs/formats.md shows can be read, and every shape there is has one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.data.reader import FORMATS
from align.rows import ROW_KINDS, data_kinds
from align.rows.row import RowReader

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def _rows(kind: str) -> Iterator[dict[str, Any]]:
    section = re.split(r"^#{2,3} ", PAGE.split(f"### {kind.capitalize()}\n")[1], flags=re.MULTILINE)[0]
    for block in re.findall(r"^```json\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        text = block.strip()
        while text:
            row, end = json.JSONDecoder().raw_decode(text)
            yield row
            text = text[end:].strip()


@pytest.mark.parametrize("name", data_kinds())
def test_every_shape_has_a_row_that_can_be_read(name: str) -> None:
    kind = data_kinds()[name]
    shapes: set[str] = set()
    for row in _rows(name):
        reader = RowReader(kind, {}, 1000)
        read = reader.read(row)
        assert not read.problems, row
        for suffix, fields in read.parts:
            assert isinstance(fields, dict)
            kind.record.model_validate({"id": f"a{suffix}", **fields})
        shapes.update(reader.reading().shapes)
    assert shapes == {shape.name for shape in kind.shapes}


def test_every_kind_is_in_the_recipes_table() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert [name for name in ROW_KINDS if f"\n| `{name}` | " not in page] == []


def test_every_column_format_and_field_is_named() -> None:
    stems = ("completion", "output", "response", "answer", "conversation")
    sides = {f"{stem}_{end}" for stem in stems for end in "ab012"}
    for kind, entry in data_kinds().items():
        for shape in entry.shapes:
            columns = {name for names in (*shape.required.values(), *shape.optional.values()) for name in names}
            assert sorted(name for name in columns - sides if f"`{name}`" not in PAGE) == [], f"{kind}: {shape.name}"
    assert [ending for ending in FORMATS if f"`{ending}`" not in PAGE] == []
    assert {name for kind in data_kinds().values() for name in kind.fields if f"`{name}`" not in PAGE} == set()
