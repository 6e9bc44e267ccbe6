"""`align plan` in the folder of a tiny project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from align.cli.main import main


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def plan(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`align plan` in the project's folder, with overrides."""
    monkeypatch.chdir(project)

    def call(*overrides: str, options: tuple[str, ...] = (), command: str = "plan") -> Answer:
        code = main([command, ".", *options, *(part for override in overrides for part in ("--set", override))])
        return Answer(code, *capsys.readouterr())

    return call
