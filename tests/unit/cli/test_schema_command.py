"""`align schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.schema_files import SHIPPED_SCHEMAS

RECIPE_SCHEMA = SHIPPED_SCHEMAS / "recipe.schema.json"


def test_it_prints_the_names_a_schema_and_its_path(align: Any) -> None:
    assert align("schema").out.split() == sorted(path.name.split(".")[0] for path in SHIPPED_SCHEMAS.glob("*.json"))
    assert json.loads(align("schema", "recipe").out) == json.loads(RECIPE_SCHEMA.read_text(encoding="utf-8"))
    assert align("schema", "recipe", "--path").out == f"{RECIPE_SCHEMA}\n"


def test_it_writes_a_file_or_beside_a_recipe(align: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert align("schema", "text", "--write", "rows.json").out == "rows.json\n"
    assert Path("rows.json").read_bytes() == (SHIPPED_SCHEMAS / "text.schema.json").read_bytes()
    line = align("schema", "recipe", "--write", ".").out.splitlines()[-1]
    assert Path(line.partition("$schema=")[2]).read_bytes() == RECIPE_SCHEMA.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["recpie"], 2, "recpie: unknown schema; did you mean 'recipe'?"),
        (["--path"], 2, "align schema recipe --path"),
        (["text", "--write", "."], 2, "--write text.schema.json"),
        (["text", "--write", "none/x.json"], 4, "none/x.json: cannot be written (No such file or directory)"),
    ],
)
def test_what_cannot_be_done(
    align: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = align("schema", *arguments)
    assert answer.code == code
    assert said in answer.err
    assert "Traceback" not in answer.err
