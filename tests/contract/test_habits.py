"""What the tools around the code promise: the commit hook checks what CI checks, `make help` is complete, files stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MAX_LINES = 400
# Tables of words and sentences, from which the quickstart's data is made.
LONGER = {"scripts/quickstart/english.py"}


def recipe_of(target: str) -> list[str]:
    match = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert match is not None
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in match[1].splitlines()]


def test_a_commit_runs_what_make_check_runs() -> None:
    config = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == recipe_of("check")
    # Names of files after `ruff check .` would be checked twice; after `mypy` they would replace what pyproject lists.
    assert all(hook["pass_filenames"] is False for hook in hooks)


def test_make_help_names_each_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    helped = re.findall(r'@echo "make ([\w-]+)', MAKEFILE)
    assert sorted(helped) == sorted(set(phony[1].split()) - {"help"})
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in helped)


@pytest.mark.parametrize("folder", ["align", "scripts", "tests"])
def test_files_are_short(folder: str) -> None:
    """A file that grows past the limit does two things: split it by what it does."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES and name not in LONGER} == {}


def test_each_gpu_test_names_its_twin_on_a_cpu() -> None:
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    assert files
    for path in files:
        for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                twin = re.match(r"CPU twin: (tests/\S+\.py)(?:::(\w+)\.|,)", ast.get_docstring(test) or "")
                assert twin is not None, f"{path.name}::{test.name}"
                assert twin[2] is None or f"def {twin[2]}(" in (ROOT / twin[1]).read_text(encoding="utf-8"), test.name
