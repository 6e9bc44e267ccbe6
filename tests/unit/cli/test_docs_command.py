"""`align docs`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align.cli import docs
from align.cli.main import main
from align.config.shipped import SHIPPED_DOCS


def test_pages_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in SHIPPED_DOCS.glob("*.md"))
    assert any(re.fullmatch(r"dpo +Direct Preference Optimization \(dpo\)", line) for line in lines)
    for name in ("dpo", "docs/dpo.md"):
        assert main(["docs", name]) == 0
        assert capsys.readouterr().out == (SHIPPED_DOCS / "dpo.md").read_text(encoding="utf-8")


def test_an_unknown_page_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "dpoo"]) == 2
    assert capsys.readouterr().err == "error: dpoo: unknown page; did you mean 'dpo'?\n→ `align docs` lists the pages.\n"


def test_a_terminal_gets_formatted_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("PAGER", "cat")
    docs.docs("orpo")
    out = capsys.readouterr().out
    assert "Odds Ratio Preference Optimization" in out and "](" not in out


def test_messages_name_pages_that_exist() -> None:
    package = Path(docs.__file__).parents[1]
    files = [*package.glob("**/*.py"), *package.glob("**/*.json"), *package.glob("**/*.jinja")]
    named = {name for path in files for name in re.findall(r"`align docs ([a-z_-]+)`", path.read_text(encoding="utf-8"))}
    assert len(named) > 8
    assert named <= {path.stem for path in SHIPPED_DOCS.glob("*.md")}
