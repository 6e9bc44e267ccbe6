"""The memory that real models may need, by the estimate: see docs/memory.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("memory_targets", ROOT / "scripts" / "benchmarks" / "memory_targets.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # its dataclasses look there
    spec.loader.exec_module(script)
    return list(script.estimates())


def test_every_target_is_met(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 11
    assert [row for row in rows if row["gib"] > row["target_gib"]] == []


def test_docs_say_what_the_command_prints(rows: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {row['model']} | {row['name']} | {row['gib']:.1f} GiB | {row['target_gib']} GiB |" in page
