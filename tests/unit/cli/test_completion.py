"""What a shell gets when a user presses Tab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.config.entry import MAX_COPIES
from align.config.shipped import SHIPPED_RECIPES, recipes_in
from align.pipeline.recipe import load_recipe
from align.rows import data_kinds
from align.stages.registry import STAGES

PLAIN = "name: x\nstages: {sft: {stage: sft}, rm: {stage: reward_model}}\n"
SEEDS = "name: x\nstages: {sft: {stage: sft, model: m, data: d, seeds: [1, 2]}, other: {stage: sft, model: m, data: d}}\n"

OTHERS = {
    "rounds": "stages: {m: {rounds: 2, model: b, generate: {}, score: {}, pairs: {}, dpo: {}}}\n",
    "endless": "stages: {m: {rounds: .inf, model: b, dpo: {}}}\n",
    "unknown": "stages: {sft: {stage: finetune, seeds: []}, other: {stage: sft, data: sft}}\n",
}


@pytest.fixture
def complete(align: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The proposals of bash for a command line, whose last word is unfinished."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("mine", PLAIN), ("seeded", SEEDS), ("broken", "name: ["), *OTHERS.items()):
        Path(name).mkdir()
        Path(name, "recipe.yaml").write_text(text)

    def run(line: str) -> list[str]:
        monkeypatch.setenv("_ALIGN_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        answer = align()
        assert answer.code == 0
        assert answer.err == ""
        return answer.out.split()  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize(
    ("line", "proposals"),
    [
        ("align run mine --only ", ["sft", "rm"]),
        ("align plan mine --until r", ["rm"]),
        ("align run --from s", []),
        ("align run seeded --only ", ["sft-s1", "sft-s2", "other"]),
        ("align run rounds --only m-2", ["m-2-generate", "m-2-score", "m-2-pairs", "m-2"]),
        ("align run unknown --only ", ["sft", "other"]),
        ("align run broken --only ", []),
        ("align run nowhere --only ", []),
        ("align run mi", ["mine"]),
        ("align run quick", ["quickstart"]),
        ("align recipes copy models/olmo", ["models/olmo-2-1b"]),
        ("align stage d", ["distill", "dpo"]),
        ("align schema recip", ["recipe"]),
        ("align recipes s", ["show"]),
        ("align init mine --goal re", ["reward_model", "rejection_sampling"]),
        ("align init mine --goal compare --method o", ["orpo"]),
        ("align init mine --rule choi", ["choice_answer"]),
    ],
)
def test_proposals(complete: Any, line: str, proposals: list[str]) -> None:
    assert complete(line) == proposals


def test_a_wrong_number_of_rounds_is_no_endless_list(complete: Any) -> None:
    assert len(complete("align run endless --only ")) == 4 * MAX_COPIES


@pytest.mark.parametrize("name", recipes_in(SHIPPED_RECIPES))
def test_the_stages_of_a_shipped_recipe_are_those_that_run(complete: Any, name: str) -> None:
    assert sorted(complete(f"align run {name} --only ")) == sorted(load_recipe(name).stages)


def test_all_stages_kinds_and_recipes_are_proposed(complete: Any) -> None:
    assert sorted(complete("align stage ")) == sorted(STAGES)
    assert complete("align data validate x --kind ") == list(data_kinds())
    assert set(complete("align run ")) == {"mine", "seeded", "broken", *OTHERS, *recipes_in(SHIPPED_RECIPES)}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell: str) -> None:
    code = "import sys, align_llm; sys.exit(align_llm.main())"
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", code, "--show-completion", shell]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert f"_ALIGN_COMPLETE=complete_{shell}" in done.stdout, done.stderr
