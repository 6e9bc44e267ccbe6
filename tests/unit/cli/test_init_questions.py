"""`align init` on a terminal: what it asks, and what it does with wrong answers."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from init_place import TURNS, Init

from align.pipeline.recipe import load_recipe
from align.pipeline.starter.choices import GOALS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_questions(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = str(list(GOALS).index("compare") + 1)
    answers = ["modle", "model", "pairs.json", "pairs.csv", "n", compare, "dpo", "16 apples", ""]
    monkeypatch.setattr("sys.stdin", Terminal("\n".join([*answers, ""])))
    answer = init("mine", model="")
    assert answer.code == 0, answer.err
    assert "model modle: there is no such folder" in answer.err  # shown, and asked again
    assert "pairs.json: there is no such file" in answer.err
    assert "Number or name [dpo]:" in answer.err
    assert "--machine 16 apples: expected auto, cpu" in answer.err
    recipe = load_recipe("mine")
    assert recipe.stages["compare"].config.models == ["base", "dpo"]  # type: ignore[attr-defined]


def test_a_reward_model_is_asked_for_where_nothing_else_scores(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("owner/reward-model\n\n"))
    answer = init("mine", "--data", "openai.jsonl", "--data", "pairs.txt", "--goal", "rejection_sampling")
    assert answer.code == 0, answer.err
    recipe = load_recipe("mine")
    assert recipe.stages["scores"].config.scorers == {"rm": "reward_model"}  # type: ignore[attr-defined]
    assert recipe.inputs["reward_model"].hub_id == "owner/reward-model"  # type: ignore[union-attr]
    assert "unused   pairs.txt: the goal rejection_sampling does not need it" in answer.out


def test_the_rule_is_asked_for_until_it_fits(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("choice\n\n\n"))
    answer = init("mine", "--data", "sums.jsonl", "--goal", "grpo")
    assert answer.code == 0, answer.err
    assert "Number or name [numeric_answer]:" in answer.err
    assert "rule choice_answer: sums.jsonl:1: has none of A, B, C, D in `reference`" in answer.err
    assert "rule     numeric_answer: the last number is the right one" in answer.out


def test_columns_are_asked_for_where_their_names_say_nothing(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'"{p}","{c}","{r}"' for p, c, r in TURNS]
    Path("odd.csv").write_text("\n".join(["x,y,z", *lines]) + "\n")
    monkeypatch.setattr("sys.stdin", Terminal("preferences\nx\n2\nz\n\n"))
    answer = init("mine", "--data", "odd.csv", "--goal", "dpo")
    assert answer.code == 0, answer.err
    assert "columns: {prompt: x, chosen: y, rejected: z}" in Path("mine/recipe.yaml").read_text()


def test_the_end_of_the_input_ends_it(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(""))
    answer = init("mine", model="")
    assert (answer.code, "the input ended" in answer.err, Path("mine").exists()) == (2, True, False)
