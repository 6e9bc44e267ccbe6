"""docs/tutorial.md: its files are written, its commands run in order, and what it says one should see is what one sees."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from align.cli.main import main

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
FAQ = PAGE.with_name("faq.md")
FENCE = re.compile(r"^```(?P<language>[a-z]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (?P<name>\w+\.py)\n")
# Numbers, their signs and units, and marks that follow from them; they differ between machines.
FIGURES = re.compile(r"\d[\d.,]*e[+-]\d+|[\d.,+\-–%▲▼~\[\]─…]+|\b(?:s|min|B|KiB|MiB|GiB)\b")
# Less than the page's own run, in less time: one pass of few steps over the data, short answers, no engine to start, and stages
# in this process, where torch is imported already.
TRAINING = {"num_epochs": 1, "batch_size": 32}
COMPARISON = {"engine": "transformers", "max_completion_tokens": 16, "bootstrap_resamples": 200}
CHANGES = [
    *(f"stages.{stage}.{key}={value}" for stage in ("dpo", "orpo", "reward_model") for key, value in TRAINING.items()),
    *(f"stages.compare.{key}={value}" for key, value in COMPARISON.items()),
]
REDUCED = [part for change in CHANGES for part in ("--set", change)]
MORE = {"run": [*REDUCED, "--in-process"], "plan": REDUCED, "export": ["--no-check"]}
NOT_COMPARED = re.compile(r"machine|trains|Free here|GPU|On rm|What rm|Red flag|! red|LC:|.*separated|Talk to it|Export it")
"""Lines that depend on the machine, conclusions from the figures, and what to do with the best model."""


def words(line: str) -> str:
    """A line without its figures."""
    return " ".join(FIGURES.sub(" ", line).split())


def seen(text: str) -> list[str]:
    """The lines that are the same on every machine."""
    return [words(line) for line in text.splitlines() if words(line) and not NOT_COMPARED.match(line)]


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shown = ""
    for fence in FENCE.finditer(PAGE.read_text(encoding="utf-8")):
        body = fence["body"]
        if "distinct-2" in body:
            # The figures decide whether a model of the table takes one line or three.
            assert all(re.search(rf"^{model} ", shown, re.MULTILINE) for model in ("base", "dpo", "orpo")), shown
            body = body[body.index("\nOnly") :]
        if fence["language"] == "text":
            assert [line for line in seen(body) if line not in seen(shown)] == [], shown
        elif fence["language"] == "yaml":
            written = Path("mine/recipe.yaml").read_text(encoding="utf-8").splitlines()
            assert [line for line in body.splitlines() if line not in written] == []
        elif fence["language"] == "python":
            named = FILE.match(body)
            Path(named["name"] if named else "snippet.py").write_text(body, encoding="utf-8")
            if not named:
                runpy.run_path("snippet.py")
                shown = capsys.readouterr().out
        elif fence["language"] == "bash":
            for line in body.splitlines():
                command = shlex.split(line, comments=True)
                if command[0] == "python":
                    runpy.run_path(command[1])
                else:
                    code = main([*command[1:], *MORE.get(command[1], [])])
                    assert code == 0, (line, capsys.readouterr().err)
            output = capsys.readouterr()
            shown = output.out + output.err
    store = [line for line in FAQ.read_text(encoding="utf-8").splitlines() if line.startswith("align store ")]
    assert len(store) >= 4
    for line in store:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
