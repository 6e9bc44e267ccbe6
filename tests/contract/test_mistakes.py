"""Mistakes that people make, and the first answer that each gets: right, short and with the right exit code.

`python tests/contract/test_mistakes.py` prints the rate, every answer that is not right, and the time of a sample from the shell.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from align.cli.main import main
from align.cli.usage import wrapped
from align.config.recipe import parse_recipe
from align.errors import RecipeError
from align.stages.registry import STAGES

TABLES = tuple(Path(__file__).with_name(name) for name in ("mistakes.yaml", "mistakes_of_methods.yaml"))
RIGHT_SHARE = 0.95
MOST_LINES = 7
COLUMNS = 80
RECIPE = """\
name: small
seed: 17
inputs:
  base: {kind: model, path: base}
  rows: {kind: instructions, path: rows.jsonl}
  prefs: {kind: preferences, path: prefs.jsonl}
  prompts: {kind: prompts, path: prompts.jsonl}
  held_out: {kind: prompts, path: held_out.jsonl}
stages:
  sft: {stage: sft, model: base, data: rows}
  reward: {stage: reward_model, model: sft, data: prefs}
  generate: {stage: generate, model: sft, prompts: prompts}
  score: {stage: score, candidates: generate, scorers: {gold: {rules: gold_rules.yaml}, rm: reward}}
  pairs: {stage: pairs, scored: score, scorer: rm}
  dpo: {stage: dpo, model: sft, pairs: pairs}
  orpo: {stage: orpo, model: sft, pairs: pairs}
  ppo: {stage: ppo, model: sft, prompts: prompts, scorers: {rm: reward}}
  compare: {stage: compare, models: [sft, dpo], baseline: sft, prompts: held_out, scorers: {rm: reward}}
"""
ROWS = {
    "words": {"prompt": "Say a word.", "completion": "A word."},
    "chosen": {"prompt": "Say a word.", "chosen": "A word.", "rejected": "No."},
    "no_label": {"prompt": "Say a word.", "completion": "A word."},
    "good_label": {"prompt": "Say a word.", "completion": "A word.", "label": "perhaps"},
}
PROPOSAL = re.compile(r"[Dd]id you mean (?:'(?P<quoted>[^']+)'|(?P<bare>[^'?]+)\?)")


class Mistake(NamedTuple):
    """One row of the table."""

    kind: str
    written: str
    expected: str
    code: int = 2
    before: str = ""
    right_recipe: str = RECIPE

    @property
    def recipe(self) -> str:
        if self.kind == "text":
            assert self.before in self.right_recipe, self.before
            return self.right_recipe.replace(self.before, self.written, 1)
        if self.kind == "input":
            return self.right_recipe.replace("path: rows.jsonl", f"path: rows.jsonl, {self.written}")
        # The first of a name is the stage; a sweep has its name too.
        key = re.compile(rf"^  {self.kind}: (.*?)}}(?=\n  [a-z]|\nsweep|\n?\Z)", re.MULTILINE | re.DOTALL)
        return key.sub(lambda entry: f"  {self.kind}: {entry[1]}, {self.written}}}", self.right_recipe, count=1)

    def is_right(self, code: int, message: str) -> bool:
        if code != self.code:
            return False
        if proposal := PROPOSAL.search(message):
            first = proposal["quoted"] or proposal["bare"]
            # Of a proposal that is not the expected one, only a sentence beside it may be the answer.
            return first == self.expected or (" " in self.expected and self.expected in message)
        return self.expected in message


def mistakes(path: Path) -> list[Mistake]:
    table = YAML(typ="safe", pure=True).load(path)
    recipe = table.pop("recipe", RECIPE)
    found = []
    for kind, rows in table.items():
        for row in rows:
            before = row[0] if kind == "text" else ""
            written, *expected = row[1:] if kind == "text" else row
            code = int(expected.pop(0)) if expected[0] in ("3", "4") else 2
            found.append(Mistake(kind, written, ", ".join(map(str, expected)), code, before, recipe))
    return found


def make_folder(folder: Path) -> None:
    for name in ("base", "teacher", "data"):
        (folder / name).mkdir()
    for name in ("rows", "prefs", "rated", "prompts", "tuning", "held_out", "data/test"):
        (folder / f"{name}.jsonl").write_text("")
    for name, row in ROWS.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (folder / "gold_rules.yaml").write_text("rules:\n  - {type: length, name: short, max_words: 50}\n")


def answer(mistake: Mistake) -> tuple[int, str]:
    """Exit code and message, in a folder made by `make_folder`."""
    Path("recipe.yaml").write_text(mistake.recipe)
    if mistake.kind == "command":
        printed, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(printed):
            code = main(shlex.split(mistake.written))
        # Of wrong rows, `data validate` prints a line each, as its result.
        return code, error.getvalue().rstrip() or printed.getvalue().partition("\n")[0]
    try:
        parse_recipe("recipe.yaml", overrides=[mistake.written] if mistake.kind == "set" else [], stage_types=STAGES)
    except RecipeError as problem:
        return problem.exit_code, f"error: {problem.render()}"
    return 0, ""


def results(path: Path) -> Iterator[tuple[Mistake, int, str]]:
    for mistake in mistakes(path):
        yield (mistake, *answer(mistake))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_mistakes_get_the_right_answer(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    found = list(results(table))
    assert len(found) >= 150
    wrong = [(mistake.written, message) for mistake, code, message in found if not mistake.is_right(code, message)]
    print(f"{len(found) - len(wrong)} of {len(found)} mistakes get the right answer first")
    long = [mistake.written for mistake, _, message in found if len(wrapped(message, COLUMNS).splitlines()) > MOST_LINES]
    assert long == []
    assert len(wrong) <= (1 - RIGHT_SHARE) * len(found), wrong


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_the_recipe_of_the_table_is_right(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    (tmp_path / "recipe.yaml").write_text(mistakes(table)[0].right_recipe)
    assert len(parse_recipe("recipe.yaml", stage_types=STAGES).stages) >= 9


def report(path: Path, folder: Path) -> None:
    os.chdir(folder)
    make_folder(folder)
    found = list(results(path))
    wrong = [(mistake, code, message) for mistake, code, message in found if not mistake.is_right(code, message)]
    for mistake, code, message in wrong:
        print(f"{mistake.kind} {mistake.before} {mistake.written} [{code}; {mistake.expected}]\n  {message}")
    lines = max(len(wrapped(message, COLUMNS).splitlines()) for _, _, message in found)
    print(f"{len(found) - len(wrong)} of {len(found)} right, at most {lines} lines of {COLUMNS} columns")
    seconds = []
    for mistake in [mistake for mistake, _, _ in found][::12]:
        Path("recipe.yaml").write_text(mistake.recipe)
        extra = ["--set", mistake.written] if mistake.kind == "set" else []
        given = shlex.split(mistake.written) if mistake.kind == "command" else ["plan", "recipe.yaml", *extra]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "align.cli.main", *given], capture_output=True, check=False)
        seconds.append(time.perf_counter() - start)
    print(f"from the shell, of {len(seconds)}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        report(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else TABLES[0], Path(made))
