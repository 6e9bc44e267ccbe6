"""The rule that checks answers where prompts say what is right: found by the references, or named by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from align.config.rules import Rule
from align.errors import EnvironmentProblem, RecipeError
from align.pipeline.starter.choices import RULES
from align.pipeline.starter.data import FoundData
from align.records import Prompt
from align.rows import PROMPTS
from align.scoring.choice import choice_of
from align.scoring.expression import whole_numbers
from align.scoring.math_answer import require_math_verify
from align.scoring.rules import lack_of_prompt

NAME = "answer"
"""Of the scorer and its rule."""
NUMBERS_NAMES = ("numbers", "nums")
"""Names of the column that problems such as countdown have."""
LETTERS = "ABCDEFGHIJ"


def problems_in(data: Sequence[FoundData]) -> FoundData:
    """The data whose answers a rule can check: prompts, with references if there are such.

    Raises:
        RecipeError: if there are no prompts.
    """
    prompts = sorted((found for found in data if found.kind is PROMPTS), key=lambda found: not found.has_references)
    if not prompts:
        raise RecipeError(
            f"--rule: needs prompts with the right answer, and there are none in {'; '.join(found.summary for found in data)}",
            hint="If a column holds the right answer: --columns prompt=question --columns reference=answer.",
        )
    return prompts[0]


def usual_rule(found: FoundData) -> str:
    """The rule that such references want."""
    prompts = _prompts(found)
    references = _references(prompts)
    if (_numbers_column(prompts) or "").lower() in NUMBERS_NAMES:
        return "expression"
    if len(_options(references, LETTERS)) > 1:
        return "choice_answer"
    if found.references_are_latex:
        return "math_answer"
    return "numeric_answer" if found.references_are_numbers else "contains_reference"


def make_rule(name: str, found: FoundData) -> dict[str, Any]:
    """The rule's fields for these prompts.

    Args:
        name: one of `RULES`.
    Raises:
        RecipeError: if prompts lack what the rule reads.
    """
    prompts = _prompts(found)
    fields: dict[str, Any] = {"type": name, "name": NAME}
    if name == "choice_answer":
        references = _references(prompts)
        options = _options(references, LETTERS) or _options(references, "123456789")
        fields["choices"] = list(options) if len(options) > 1 else list("ABCD")
    elif name == "expression":
        fields["numbers"] = _numbers_column(prompts) or "numbers"
    elif name == "json":
        fields["json_schema"] = {"type": "object"}
    rule: Any = TypeAdapter(Rule).validate_python(fields)
    lacks = [(prompt, lack) for prompt in prompts if (lack := lack_of_prompt(rule, prompt))]
    if lacks:
        (first, lack), count = lacks[0], len(lacks)
        place = f"{found.path}:{first.line}"
        others = f" ({count:,} of the first {len(prompts):,} rows cannot be used with it)" if count > 1 else ""
        raise RecipeError(
            f"rule {name}: {place}: has {lack}{others}",
            hint=f"Correct these rows or take them out, or take another --rule: {', '.join(RULES)}.",
        )
    return fields


def missing_package(rule: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the rule needs and this environment lacks, and what to do; None if nothing is missing."""
    if rule["type"] != "math_answer":
        return None
    try:
        require_math_verify("math_answer")
    except EnvironmentProblem as problem:
        return problem.message, problem.hint or ""
    return None


def _prompts(found: FoundData) -> list[Prompt]:
    return [record for record in found.sample if isinstance(record, Prompt)]


def _references(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.reference for prompt in prompts if prompt.reference]


def _options(references: Sequence[str], labels: str) -> str:
    """The labels up to the last one that a reference names; empty where one names none, or says more than a label would."""
    chosen = [choice_of(text, list(labels)) for text in references]
    return labels[: max(map(labels.index, map(str, chosen))) + 1] if chosen and None not in chosen else ""


def _numbers_column(prompts: Sequence[Prompt]) -> str | None:
    """The column that has several whole numbers in every row."""
    names = list(prompts[0].fields) if prompts else []
    return next((name for name in names if all(len(whole_numbers(row.fields.get(name, "")) or ()) > 1 for row in prompts)), None)
