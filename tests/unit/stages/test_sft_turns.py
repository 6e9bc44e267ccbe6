"""sft with the loss on every assistant message of a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align import load_recipe, run_recipe
from align.testing import tiny_project
from align.testing.project import write_jsonl

TALK = [
    {"role": role, "content": text}
    for role, text in (("user", "하나?"), ("assistant", "둘."), ("user", "three?"), ("assistant", "four."))
]


def train(folder: Path, train_on: str) -> dict[str, Any]:
    recipe = tiny_project(folder)
    write_jsonl(folder / "instructions.jsonl", [{"messages": TALK}, {"messages": [*TALK[2:], *TALK[:2]]}])
    recipe.write_text(recipe.read_text().replace("data: instructions,", f"data: instructions, train_on: {train_on},"))
    run_recipe(load_recipe(recipe), folder / "runs", until="sft", in_process=True)
    stage = (folder / "runs" / "tiny" / "stages" / "sft").resolve()
    manifest: dict[str, Any] = json.loads((stage / "manifest.json").read_text())
    assert (manifest["rows_in"], manifest["rows_out"]) == (2, 2)
    return manifest["metrics"]


def test_the_loss_is_on_more_of_the_same_tokens(tmp_path: Path) -> None:
    """That the labels are the assistant's messages and nothing else, the guard checks in both trainings."""
    last, every = train(tmp_path / "last", "last"), train(tmp_path / "all", "all")
    assert last["tokens"] == every["tokens"]
    assert last["train_loss"] != every["train_loss"]
