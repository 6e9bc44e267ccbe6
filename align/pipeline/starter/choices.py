"""What a user of `align init` can choose from. Imports nothing, as shells propose these words at a press of Tab."""

from __future__ import annotations

from collections.abc import Mapping

COMPARE = "compare"
GOALS: Mapping[str, str] = {
    "sft": "fine-tune on answers to imitate",
    "dpo": "train on preference pairs with DPO",
    "orpo": "train on preference pairs with ORPO: needs no sft before",
    "kto": "train on single answers that are marked good or bad",
    "grpo": "practise on problems whose answers a rule can check (GRPO)",
    "rloo": "practise on prompts whose answers are scored (RLOO)",
    "reward_model": "train a reward model on preference pairs",
    "pairs": "sample answers, score them, build preference pairs",
    "rejection_sampling": "sample answers, keep the best, fine-tune on them",
    COMPARE: "train in several ways, compare on held-out prompts",
}
METHODS = ("sft", "dpo", "orpo", "rejection_sampling", "grpo", "rloo")
"""What `compare` can compare."""
ONLINE = ("grpo", "rloo")
RULES: Mapping[str, str] = {
    "numeric_answer": "the last number is the right one",
    "choice_answer": "names the right option: A, B, C, D",
    "math_answer": "is the same in mathematics, also in LaTeX (math-verify)",
    "expression": "is a sum of given numbers that reaches a target: countdown",
    "contains_reference": "contains the right answer, in any case",
    "json": "is JSON, of a form that you add to the recipe",
}
"""By the type of the rule: what it wants of an answer."""
