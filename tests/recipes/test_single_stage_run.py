"""`align stage`: one stage without a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.cli.main import main

pytestmark = pytest.mark.slow


def test_one_stage_without_a_recipe(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    code = main([
        "stage", "sft", "--model", str(project / "base"), "--data", str(project / "instructions.jsonl"),
        "--max-tokens", "128", "--batch-size", "4", "--out", str(out),
    ])  # fmt: skip
    assert code == 0
    weights = out / "stages" / "sft" / "model" / "model.safetensors"
    assert weights.resolve().is_relative_to(out.resolve())
    assert {path.name for path in tmp_path.iterdir()} == {"one", "project"}
