"""`align pairs` as a person runs it: from a model and prompts to a file, its drops and its card; twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main

pytestmark = pytest.mark.slow


def test_from_model_to_pairs_and_their_card(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(project)
    Path("rules.yaml").write_text("- {type: length, name: short, max_characters: 12}\n- {type: avoids, name: a, none_of: [a]}\n")
    command = [
        "pairs", "--model", "base", "--prompts", "prompts.jsonl", "--scorer", "gold=rules.yaml", "--num-candidates", "6",
        "--max-completion-tokens", "8", "--max-prompt-tokens", "96", "--engine", "transformers", "--keep-truncated",
        "--out", "out/mine.jsonl", "--json",
    ]  # fmt: skip
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in Path("out/mine.jsonl").read_text().splitlines()]
    drops = [json.loads(line) for line in Path("out/mine.drops.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} | {drop["id"] for drop in drops} == {f"p{n}" for n in range(12)}
    assert (told["prompts_in"], told["pairs_out"], sum(told["dropped"].values())) == (12, len(rows), len(drops))
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows)
    card = Path("out/mine.README.md").read_text()
    assert "align pairs --model base --prompts prompts.jsonl --scorer gold=rules.yaml" in card
    assert str(project) not in card

    before = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    Path("out/mine.jsonl").unlink()
    assert main(command) == 0
    assert "generate, score, pairs: reused from an earlier run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()} == before
