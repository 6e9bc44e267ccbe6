"""What a user can want of a first recipe, and what their rows say about it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.errors import RecipeError
from align.pipeline.starter.choices import COMPARE, ONLINE
from align.pipeline.starter.data import FoundData, as_problems
from align.pipeline.starter.model import FoundModel
from align.rows import INSTRUCTIONS, LABELLED, PREFERENCES

SAMPLED = ("pairs", "rejection_sampling", *ONLINE)
"""Goals that need scores of the model's own answers."""
JUDGE_PAIRS = 1_000
"""Preference pairs from which on a comparison has a judge of its own, on half of them. A tenth of that half measures how often it
is right: 50 pairs, which leave ±13 points. With fewer, nobody would know whether the judge is better than a coin."""


@dataclass(frozen=True)
class Wanted:
    """What a user said, with what was found there."""

    goal: str
    methods: tuple[str, ...]
    """For `compare`."""
    model: FoundModel
    data: tuple[FoundData, ...]
    reward_model: FoundModel | None = None
    rule: Mapping[str, Any] | None = None
    """The fields of the rule that scores answers, where one does."""
    judge: bool | None = None
    """Whether half of the pairs are for the judge of `compare`, a second reward model. None: if there are `JUDGE_PAIRS`."""
    judge_model: FoundModel | None = None
    """A reward model that only judges."""

    @property
    def steps(self) -> tuple[str, ...]:
        return self.methods if self.goal == COMPARE else (self.goal,)


def usual_goal(data: Sequence[FoundData]) -> str:
    """The goal that a user with such rows usually has."""
    kinds = {found.kind.name for found in data}
    usual = {PREFERENCES.name: "dpo", LABELLED.name: "kto", INSTRUCTIONS.name: "sft"}
    return next((goal for kind, goal in usual.items() if kind in kinds), "rejection_sampling")


def usual_methods(data: Sequence[FoundData]) -> tuple[str, ...]:
    """The methods that such rows can be compared with."""
    kinds = {found.kind.name for found in data}
    if not kinds & {INSTRUCTIONS.name, PREFERENCES.name} and any(found.has_references for found in data):
        return ("rejection_sampling", "grpo")
    fitting = (*(["sft"] if INSTRUCTIONS.name in kinds else []), *(["dpo", "orpo"] if PREFERENCES.name in kinds else []))
    return fitting or ("rejection_sampling",)


def lacks_scorer(goal: str, methods: Sequence[str], data: Sequence[FoundData], *, judged: bool) -> bool:
    """Whether the goal needs answers to be scored, and no rows can teach it or say what is right.

    Args:
        judged: whether a comparison has a judge of its own.
    """
    scores = bool({*SAMPLED} & {goal, *methods}) or (goal == COMPARE and not judged)
    return scores and not any(found.kind is PREFERENCES or found.has_references for found in data)


def with_problems(steps: Container[str], data: Sequence[FoundData]) -> list[FoundData]:
    """The data of a goal that practises on problems: questions with answers are problems, and instructions for `sft`."""
    if any(found.has_references for found in data):
        return list(data)
    read = [(found, as_problems(found)) for found in data]
    keeps = "sft" in steps
    return [one for found, problems in read for one in ((found, problems) if keeps else (problems or found,)) if one is not None]


def scored_by_rule(goal: str, methods: Sequence[str], data: Sequence[FoundData]) -> bool:
    """Whether a rule scores answers: prompts say what is right, and a method practises on them, or no pairs teach a score."""
    steps, has_pairs = {goal, *methods}, any(found.kind is PREFERENCES for found in data)
    scores = bool({*SAMPLED} & steps) or goal == COMPARE or (bool({"dpo", "orpo"} & steps) and not has_pairs)
    return scores and any(found.has_references for found in data) and (not has_pairs or bool({*ONLINE} & steps))


def optimises_score(wanted: Wanted) -> bool:
    """Whether a method learns to raise the score of its own answers."""
    return bool({"rejection_sampling", *ONLINE} & {*wanted.methods})


def judge_of(wanted: Wanted) -> tuple[FoundData | None, str]:
    """The pairs of which the judge gets half, and a sentence about it; None if there is no judge.

    Raises:
        RecipeError: if the user wants a judge where none is possible.
    """
    pairs = next((found for found in wanted.data if found.kind is PREFERENCES), None)
    decided = wanted.rule is not None or (wanted.reward_model is not None and not optimises_score(wanted))
    problem = "" if wanted.goal == COMPARE else "it is for --goal compare"
    if wanted.judge_model is not None:
        if not problem and wanted.reward_model is not None and wanted.reward_model.written == wanted.judge_model.written:
            problem = "is the model of --reward-model, which methods learn from"
        if problem:
            raise RecipeError(f"--judge-model: {problem}", hint="Name another model, or leave --judge-model out.")
        return None, f"{wanted.judge_model.written}, which no method uses"
    if not problem and (pairs is None or decided):
        problem = "there are no preference pairs to learn from" if pairs is None else "no method learns to raise the score here"
    if problem and wanted.judge:
        raise RecipeError(f"--judge: {problem}", hint="Leave --judge out.")
    if problem or pairs is None:
        return None, ""
    if wanted.judge is False:
        return None, "none, as --no-judge says: the score is from the pairs that the methods may learn from"
    if wanted.judge is None and pairs.rows < JUDGE_PAIRS:
        few = f"{pairs.rows:,} pairs are too few to keep half from training ({JUDGE_PAIRS:,} needed)"
        return None, f"none: {few}; --judge does it"
    return pairs, f"a reward model from half of the {pairs.rows:,} pairs, kept from training; --no-judge leaves it out"
