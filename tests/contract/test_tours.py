"""The tours of docs/design.md name files that exist and say how long they are; DPO's stays within 8 files and 900 lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

DESIGN = Path(__file__).resolve().parents[2] / "docs" / "design.md"
MAX_FILES = 8
MAX_LINES = 900
MAX_STAGE_LINES = 70
STALE_LINES = 12  # A line more or less in a file need not change the page.

STOP = re.compile(r"^\| (\d+) \| \[`[\w.]+`\]\((\S+?\.py)\)(?:: ([^|]+))? \| (\d+) \|", re.MULTILINE)


def tour(method: str) -> list[tuple[int, Path, list[str], int]]:
    """Number, file, named definitions (none: the whole file) and stated lines of every stop."""
    text = DESIGN.read_text(encoding="utf-8").split(f"### {method}, from recipe to gradient")[1].split("\n### ")[0]
    found = STOP.findall(text)
    return [(int(n), DESIGN.parent / path, re.findall(r"`(\w+)`", names), int(lines)) for n, path, names, lines in found]


def lines_of(file: Path, names: list[str]) -> int:
    source = file.read_text(encoding="utf-8")
    if not names:
        return len(source.splitlines())
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return sum(lengths[name] for name in names)


@pytest.mark.parametrize(
    ("number", "file", "names", "stated"), [*tour("DPO"), *tour("PPO")], ids=lambda value: str(value).rpartition("/")[2]
)
def test_a_stop_says_how_long_it_is(number: int, file: Path, names: list[str], stated: int) -> None:
    counted = lines_of(file, names)
    assert abs(counted - stated) <= STALE_LINES, f"stop {number}, {file.name}: {counted} lines, the page says {stated}"


def test_the_tour_is_short() -> None:
    stops = tour("DPO")
    assert [number for number, *_ in stops] == list(range(1, len(stops) + 1))
    assert 1 < len(stops) <= MAX_FILES
    assert sum(lines_of(file, names) for _, file, names, _ in stops) <= MAX_LINES


@pytest.mark.parametrize("stage", ["dpo", "orpo", "reward_model"])
def test_the_stage_file_of_a_pairwise_method_is_short(stage: str) -> None:
    assert lines_of(DESIGN.parents[1] / "align" / "stages" / f"{stage}.py", []) <= MAX_STAGE_LINES
