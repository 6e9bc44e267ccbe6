"""A finished run on a file system that can only be read, and commands that would write there."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.testing.chaos_run import MOST_LINES
from align.testing.read_only import NotPossible, run_read_only


@pytest.fixture(scope="module")
def ends(finished_run: Path, project_template: Path, common: Path) -> dict[str, tuple[int, str]]:
    """How commands end, by their words, with recipe, data and results on a read-only mount."""
    recipe, out = str(project_template / "recipe.yaml"), ["--out", str(finished_run.parent)]
    commands = {
        "plan": ["plan", recipe, *out],
        "run": ["run", recipe, *out],
        "run with another setting": ["run", recipe, *out, "--set", "stages.dpo.learning_rate=2e-3"],
        "run elsewhere": ["plan", recipe, "--out", str(common / "new")],
        "store list": ["store", "list", *out],
        "store verify": ["store", "verify", *out],
        "store prune": ["store", "prune", *out],
        "store prune --yes": ["store", "prune", "--yes", *out],
    }
    try:
        found = run_read_only(common, list(commands.values()))
    except NotPossible as reason:
        pytest.skip(f"nothing can be mounted here: {reason}")
    return {words: (end.code, end.output) for words, end in zip(commands, found, strict=True)}


def test_a_finished_run_can_be_planned_and_read(ends: dict[str, tuple[int, str]]) -> None:
    for words in ("plan", "run", "store list", "store verify", "store prune"):
        assert ends[words][0] == 0, ends[words]
    assert "to run" not in ends["plan"][1] and ends["plan"][1].count("done before") == 11
    assert "report.html" in ends["run"][1]


def test_what_would_write_there_says_that_it_cannot(ends: dict[str, tuple[int, str]]) -> None:
    for words in ("run with another setting", "run elsewhere", "store prune --yes"):
        code, output = ends[words]
        message = output[output.index("error: ") :]
        assert code == 4 and "the file system is read-only" in message, (words, output)
        assert "Traceback" not in output and len(message.splitlines()) <= MOST_LINES
