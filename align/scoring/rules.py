"""Scoring a completion with declarative rules: pure Python, the same value on every machine."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import regex

from align.config.rules import (
    AvoidsRule,
    ContainsReferenceRule,
    LengthRule,
    MatchesRule,
    NumericAnswerRule,
    RepetitionRule,
    Rule,
    RuleSet,
)
from align.data.quality.repetition import repeated_share
from align.errors import DataError, StageError

PATTERN_TIMEOUT_S = 5.0
"""Seconds one search may take. Replies are short: only a pattern that backtracks without end comes near it."""

# A sign counts only where no digit or letter stands before it: "5-3" ends in 3, "= -3" in -3.
_NUMBER = regex.compile(r"(?:(?<![\w.])[-+−])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)")


@dataclass(frozen=True)
class RuleScore:
    """The result of a rule set for one completion."""

    score: float
    """Weighted mean of the values, in [0, 1]."""
    values: dict[str, float]
    """Rule name → 0.0 or 1.0."""


def score_with_rules(rule_set: RuleSet, *, prompt_id: str, completion: str, reference: str | None) -> RuleScore:
    """Score one completion.

    Args:
        rule_set: the rules and their weights.
        prompt_id: the prompt's id, for messages only.
        completion: the reply alone, without its prompt.
        reference: the prompt row's `reference`, or None if it has none.

    Raises:
        DataError: a rule needs a reference, and the prompt has none or an unusable one.
        StageError: a pattern took longer than `PATTERN_TIMEOUT_S`.
    """
    # Patterns and references are in NFC too: the same visible text may come composed or decomposed.
    text = unicodedata.normalize("NFC", completion)
    values = {rule.name: float(_passes(rule, text, prompt_id, reference)) for rule in rule_set.rules}
    total_weight = sum(rule.weight for rule in rule_set.rules)
    return RuleScore(sum(rule.weight * values[rule.name] for rule in rule_set.rules) / total_weight, values)


def _passes(rule: Rule, text: str, prompt_id: str, reference: str | None) -> bool:
    """Whether the NFC completion `text` passes one rule."""
    match rule:
        case MatchesRule():
            return _finds_any(rule, rule.any_of, rule.ignore_case, text, prompt_id)
        case AvoidsRule():
            return not _finds_any(rule, rule.none_of, rule.ignore_case, text, prompt_id)
        case ContainsReferenceRule():
            return _folded(_required_reference(rule, prompt_id, reference)) in _folded(text)
        case LengthRule():
            return _within(len(text.strip()), rule.min_characters, rule.max_characters) and _within(
                len(text.split()), rule.min_words, rule.max_words
            )
        case RepetitionRule():
            return repeated_share(text, ngram_words=rule.ngram_words) <= rule.max_repeated_share
        case NumericAnswerRule():
            expected = last_number(_required_reference(rule, prompt_id, reference))
            if expected is None:
                raise DataError(f"prompt {prompt_id!r}: `reference` is {reference!r}, which holds no number (rule {rule.name!r})")
            return last_number(text) == expected


def _required_reference(rule: Rule, prompt_id: str, reference: str | None) -> str:
    if reference is None or not reference.strip():
        raise DataError(
            f"prompt {prompt_id!r} has no `reference`, which the rule {rule.name!r} (type {rule.type}) needs",
            hint="Give every prompt row a `reference`, or take the rule out of the rule set.",
        )
    return reference


# Thousands of completions meet the same patterns.
@lru_cache(maxsize=1024)
def _compiled(pattern: str, ignore_case: bool) -> regex.Pattern[str]:
    return regex.compile(unicodedata.normalize("NFC", pattern), regex.IGNORECASE if ignore_case else 0)


def _finds_any(rule: Rule, patterns: Sequence[str], ignore_case: bool, text: str, prompt_id: str) -> bool:
    for pattern in patterns:
        try:
            if _compiled(pattern, ignore_case).search(text, timeout=PATTERN_TIMEOUT_S):
                return True
        except TimeoutError:
            raise StageError(
                f"rule {rule.name!r}: the pattern {pattern!r} took more than {PATTERN_TIMEOUT_S:g} s"
                f" on a completion of prompt {prompt_id!r} ({len(text)} characters)",
                hint="Write the pattern without nested repetition such as (a+)+.",
            ) from None
    return False


def _folded(text: str) -> str:
    """For comparing without regard to case; NFC again, since case folding can undo it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _within(count: int, least: int | None, most: int | None) -> bool:
    return (least is None or count >= least) and (most is None or count <= most)


def last_number(text: str) -> Decimal | None:
    """The last number written in `text` ("1,234.50" is 1234.5), or None."""
    numbers = _NUMBER.findall(text)
    # Decimal, since 0.1 and 0.10 are equal and no digit is lost, as it would be in a float.
    return Decimal(numbers[-1].replace(",", "").replace("−", "-")) if numbers else None
