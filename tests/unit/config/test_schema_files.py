"""The schema that an editor finds beside a recipe."""

from __future__ import annotations

from pathlib import Path

from align.config.schema_files import SHIPPED_SCHEMAS, add_schema


def test_the_line_leads_from_the_recipe_to_this_versions_schema(tmp_path: Path) -> None:
    (tmp_path / ".align").mkdir()
    (tmp_path / ".align" / "recipe.schema.json").write_text("{} of an older version")
    line = add_schema(tmp_path)
    beginning, _, path = line.partition("$schema=")
    assert beginning == "# yaml-language-server: "
    assert not Path(path).is_absolute()
    assert (tmp_path / path).read_bytes() == (SHIPPED_SCHEMAS / "recipe.schema.json").read_bytes()
