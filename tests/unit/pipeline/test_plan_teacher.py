"""What a plan says of a teacher: whether it has the student's tokens and chat template, and what it takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from align.errors import RecipeError
from align.pipeline.checks.plan import check_plan, checked_plan
from align.pipeline.estimate.guess import SpeedGuess
from align.pipeline.estimate.lengths import MeasuredRows
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.estimate.speed import Speed
from align.pipeline.plan import Plan, make_plan
from align.pipeline.recipe import load_recipe
from align.testing import tiny_causal_lm
from align.testing.project import write_jsonl
from align.testing.tiny import CHAT_TEMPLATE

RECIPE = """\
name: small
inputs:
  base: {kind: model, path: base}
  big: {kind: model, path: big}
  prompts: {kind: prompts, path: prompts.jsonl}
stages:
  distill: {stage: distill, model: base, teacher: big, prompts: prompts, max_prompt_tokens: 64, max_completion_tokens: 8}
"""
GIB = 1 << 30
MACHINE = Machine("cpu", "memory", 8 * GIB, 8 * GIB, 50 * GIB, has_bfloat16=False)
SLOW = Speed(flops=1e6, bandwidth=1e6, cache_bytes=1e9, shares_memory=False, number_bytes=4)


@pytest.fixture
def base(project_template: Path, tmp_path: Path) -> Path:
    """A recipe with a student, whose teacher is yet to be made."""
    shutil.copytree(project_template / "base", tmp_path / "base")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "say one"}])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "base"


def plan_of(base: Path, *overrides: str) -> Plan:
    return make_plan(load_recipe(base.parent / "recipe.yaml", overrides), base.parent / "runs")


def test_a_teacher_with_other_tokens_is_refused_by_both_names(base: Path) -> None:
    tiny_causal_lm(base.parent / "big", texts=["entirely different words, and many of them"])
    with pytest.raises(RecipeError) as refused:
        checked_plan(load_recipe(base.parent / "recipe.yaml"), base.parent / "runs")
    said = str(refused.value)
    assert "recipe.yaml:7:51: stages.distill.teacher: 'big' has another tokenizer than 'base'" in said
    assert " tokens differ, such as '" in said
    assert refused.value.hint is not None and "with the tokenizer of 'base'" in refused.value.hint


def test_a_larger_model_of_the_same_family_is_a_teacher(base: Path) -> None:
    """Its weights count, and its pass over what the student learns from."""
    shutil.copytree(base, base.parent / "big")
    assert check_plan(plan_of(base)) == []
    (found,) = estimate_plan(plan_of(base), MACHINE).stages
    assert found.of_recipe is not None
    weights = (base / "model.safetensors").stat().st_size
    # The teacher, and the sampling engine's copy of the student.
    assert found.of_recipe.memory.other_models > 1.9 * weights
    plan = plan_of(base)
    guess = SpeedGuess(plan, MACHINE, SLOW, MeasuredRows(plan.store)).guess(plan.stages[0])
    assert guess is not None and guess.seconds > 0


def test_a_teacher_with_another_chat_template_is_said(base: Path) -> None:
    shutil.copytree(base, base.parent / "big")
    (base.parent / "other.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    plan = plan_of(base, "inputs.big.chat={template: other.jinja}")
    assert_another_template(plan)


def test_a_template_that_refuses_a_prompt_is_another_one(base: Path) -> None:
    shutil.copytree(base, base.parent / "big")
    refusal = "{% if messages[0].content == 'Hello' %}{{ raise_exception('no greetings') }}{% endif %}"
    (base.parent / "other.jinja").write_text(refusal + CHAT_TEMPLATE)
    assert_another_template(plan_of(base, "inputs.big.chat={template: other.jinja}"))
    # Where both refuse it, nothing is known to differ.
    same = "{template: other.jinja}"
    findings = check_plan(plan_of(base, f"inputs.big.chat={same}", f"inputs.base.chat={same}"))
    assert [finding for finding in findings if finding.name == "distill"] == []


def assert_another_template(plan: Plan) -> None:
    (finding,) = [finding for finding in check_plan(plan) if finding.name == "distill"]
    assert finding.action == "warn"
    assert "'big' was made for another chat template than 'base', in whose form it will read the prompts" in finding.text
