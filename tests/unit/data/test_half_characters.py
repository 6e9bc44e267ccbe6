"""Half a character in the name of a field, which JSON can write and no file can hold: found by fuzzing."""

from __future__ import annotations

from pathlib import Path

from align.data.source import Source, SourceFile
from align.data.validation import RowRules, collect_rows
from align.rows import data_kinds


def test_a_field_named_by_half_a_character_is_a_drop_that_shows_its_escape(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"messages": 58, "\\ud800": 1}\n')
    source = Source((SourceFile(path, "x.jsonl", {}),), "x.jsonl")
    with collect_rows(source, RowRules(data_kinds()["preferences"], on_invalid="drop")) as rows:
        assert "\\ud800" in next(rows.drops()).detail
