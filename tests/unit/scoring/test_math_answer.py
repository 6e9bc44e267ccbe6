"""Answers that math-verify compares: right and wrong ones, hostile ones, threads, and a machine without the package."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe
from align.config.rules import RuleSet
from align.errors import DataError, EnvironmentProblem
from align.pipeline.plan import make_plan
from align.scoring import math_answer
from align.scoring.math_answer import equal_answers
from align.scoring.rules import RuledPrompt, score_with_rules

needs_package = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")

CASES = [  # reference, right, wrong
    (r"\frac{1}{2}", "The answer is $0.5$.", "The answer is $0.2$."),
    ("1/2", r"So it is \boxed{\frac{2}{4}}.", r"So it is \boxed{\frac{2}{3}}."),
    ("x^2+1", "$1 + x^2$", "$1 + 2x$"),
    ("72", "정답은 72입니다.", "정답은 71입니다."),
    ("#### 1,234"[5:], "It is 1234.", "It is 1,235."),
    (r"\{1,2\}", r"$\{2, 1\}$", r"$\{1, 3\}$"),
    ("(0,1)", "$(0, 1)$", "$[0, 1)$"),
    (r"$\sqrt{8}$", r"$2\sqrt{2}$", r"$2\sqrt{3}$"),
    ("12", r"\boxed{12}", "no number here"),
    (r"\boxed{-3}", "$-3$", "$3$"),
]


def score(reference: str, completion: str, **rule: Any) -> float:
    rules = RuleSet.model_validate({"rules": [{"name": "correct", "type": "math_answer", **rule}]})
    return score_with_rules(rules, RuledPrompt("p-1", reference), completion).score


@needs_package
@pytest.mark.parametrize(("reference", "right", "wrong"), CASES)
def test_equal_and_different_answers(reference: str, right: str, wrong: str) -> None:
    assert score(reference, right) == 1
    assert score(reference, wrong) == 0


@needs_package
def test_a_pattern_says_where_the_answer_stands() -> None:
    assert score("7", "#### 7\nor is it $8$?", pattern=r"####\s*(\S+)") == 1
    assert score("7", "It is $7$.", pattern=r"####\s*(\S+)") == 0


@needs_package
def test_a_hostile_answer_is_wrong_in_time_also_in_a_thread_and_the_next_one_is_compared() -> None:
    hostile = "$" + "9^{" * 8 + "9" + "}" * 8 + "$"
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda text: equal_answers("7", text, timeout_seconds=0.5), [hostile, "$7$" * 1, hostile]))
    assert (found[0], found[2]) == (False, False)
    assert time.monotonic() - begun < 60  # without the limit: never
    assert equal_answers("7", "$7$", timeout_seconds=30.0) is True


@needs_package
def test_a_reference_without_an_answer_is_an_error() -> None:
    with pytest.raises(DataError, match=r"'p-1': no mathematical answer can be read in the reference '\?\?'"):
        score("??", "$7$")
    with pytest.raises(DataError, match="no `reference`"):
        score(" ", "$7$")


def test_a_missing_package_is_named_before_anything_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_answer, "PACKAGE", "math_verify_that_is_missing")
    path = project / "recipe.yaml"
    rule = "{name: correct, type: math_answer}"
    path.write_text(path.read_text().replace("scorers: {rm: reward}}", f"scorers: {{rm: reward, ok: {{rules: [{rule}]}}}}}}", 1))
    with pytest.raises(EnvironmentProblem, match="scored: a rule of the type math_answer needs math-verify") as caught:
        make_plan(load_recipe(path), project / "runs")
    assert "pip install 'align-llm[math]'" in caught.value.render()
