"""`align export` as a person types it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.testing import tiny_causal_lm

Align = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets variables for its process; a test gives them back."""
    from align.pipeline.worker import process_environment

    for key, value in process_environment({}).items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("model") / "mine")


def test_the_result_is_on_stdout_and_what_goes_on_on_stderr(align: Align, model: Path, tmp_path: Path) -> None:
    answer = align("export", str(model), "--to", str(tmp_path / "out"), "--no-check")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "Not checked; the card says so."
    assert answer.out.splitlines()[1].startswith(f"Exported: {tmp_path / 'out'} (float32, ")
    assert answer.err.startswith("writing the weights\n")


def test_json(align: Align, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
    answer = align("export", str(model), "--to", str(tmp_path / "out"), "--dtype", "bfloat16", "--json")
    value = json.loads(answer.out)
    assert (value["folder"], value["dtype"], value["checks"][0]["compared"]) == (str(tmp_path / "out"), "bfloat16", 50)


@pytest.mark.parametrize("more", [["--dtype", "int8"], [], ["--to"]])
def test_usage_errors(align: Align, model: Path, more: list[str]) -> None:
    answer = align("export", str(model), *more)
    assert (answer.code, answer.out) == (2, "")


def test_an_existing_folder_is_a_short_error(align: Align, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    answer = align("export", str(model), "--to", str(tmp_path))
    assert answer.code == 2
    assert answer.err.splitlines() == [
        f"error: --to {tmp_path}: exists and is not an empty folder",
        "→ Give a folder that does not exist yet.",
    ]
