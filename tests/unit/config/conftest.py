"""A folder with a recipe that has no mistake, and a way to put one in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from align.config.recipe import Recipe, parse_recipe
from align.errors import RecipeError
from align.stages.registry import STAGES

RECIPE = """\
name: small
inputs:
  base: {kind: model, path: base}
  lessons: {kind: instructions, path: lessons.jsonl}
  prompts: {kind: prompts, path: prompts.jsonl}
  held_out: {kind: prompts, path: held_out.jsonl}
stages:
  dpo: {stage: dpo, model: sft, pairs: pairs, beta: 0.1}
  sft: {stage: sft, model: base, data: lessons, num_epochs: 3}
  sampled: {stage: generate, model: sft, prompts: prompts}
  scored: {stage: score, candidates: sampled, scorers: {gold: {rules: gold.yaml}}}
  pairs: {stage: pairs, scored: scored, scorer: gold}
  compare:
    stage: compare
    models: [sft, dpo]
    baseline: sft
    prompts: held_out
    scorers: {gold: {rules: gold.yaml}}
"""
RULES = "rules:\n  - {type: length, name: short, max_words: 50}\n"

Problems = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the recipe, which is also the current one."""
    (tmp_path / "base").mkdir()
    for name in ("lessons", "prompts", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text("")
    (tmp_path / "gold.yaml").write_text(RULES)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def problems(folder: Path) -> Problems:
    """Lines of the error after replacing a part of the recipe; no lines when there is no error."""

    def read(before: str = "", after: str = "", *, overrides: Sequence[str] = ()) -> list[str]:
        assert before in RECIPE
        (folder / "recipe.yaml").write_text(RECIPE.replace(before, after, 1))
        try:
            parse_recipe("recipe.yaml", overrides=overrides, stage_types=STAGES)
        except RecipeError as error:
            return str(error).splitlines()
        return []

    return read


@pytest.fixture
def forms(folder: Path) -> Callable[..., Recipe]:
    """Reads the text of a recipe in the folder, with overrides: `forms(text, "stages.dpo.beta=0.2")`."""

    def read(text: str, *overrides: str) -> Recipe:
        (folder / "recipe.yaml").write_text(text)
        return parse_recipe("recipe.yaml", overrides=overrides, stage_types=STAGES)

    return read


@pytest.fixture
def mistakes_after(forms: Callable[..., Recipe]) -> Problems:
    """Lines of the error after replacing parts of a text: `mistakes_after(text, "before", "after")`."""

    def read(text: str, *replacements: str, overrides: Sequence[str] = ()) -> list[str]:
        for before, after in zip(replacements[::2], replacements[1::2], strict=True):
            assert before in text
            text = text.replace(before, after, 1)
        try:
            forms(text, *overrides)
        except RecipeError as error:
            return str(error).splitlines()
        return []

    return read
