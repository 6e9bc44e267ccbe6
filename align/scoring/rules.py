"""Scoring a completion with declarative rules: pure Python, the same value on every machine."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

import regex

from align.config.reference import FieldPath
from align.config.row_need import RowNeed
from align.config.rules import (
    AvoidsRule,
    ContainsReferenceRule,
    EchoRule,
    LengthRule,
    MatchesFieldRule,
    MatchesRule,
    NamesNoOtherRule,
    NumericAnswerRule,
    RepetitionRule,
    Rule,
    RuleSet,
    WordPairsRule,
)
from align.config.sections import RulesScorer
from align.data.quality.repetition import copied_share, repeated_share, word_pairs
from align.errors import DataError, StageError
from align.records import Candidate

PATTERN_TIMEOUT_S = 5.0
"""Seconds one search may take. Replies are short: only a pattern that backtracks without end comes near it."""

# A sign counts only where no digit or letter stands before it: "5-3" ends in 3, "= -3" in -3.
_NUMBER = regex.compile(r"(?:(?<![\w.])[-+−])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)")


@dataclass(frozen=True)
class RuledPrompt:
    """What rules may compare a completion with."""

    id: str
    """For messages only."""
    reference: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    """The prompt's other columns."""
    text: str = ""
    """The messages of the prompt."""

    @classmethod
    def of(cls, candidate: Candidate) -> RuledPrompt:
        """The prompt of a candidate."""
        text = "\n".join(message.text for message in candidate.prompt)
        return cls(candidate.prompt_id, candidate.reference, candidate.fields, text)


@dataclass(frozen=True)
class RuleScore:
    """The result of a rule set for one completion."""

    score: float
    """Weighted mean of the values, in [0, 1]; no more than the least `at_most` of the rules that failed."""
    values: dict[str, float]
    """Rule name → 0.0 or 1.0."""


def score_with_rules(rule_set: RuleSet, prompt: RuledPrompt, completion: str) -> RuleScore:
    """Score one completion.

    Args:
        rule_set: the rules and their weights.
        prompt: what the completion answers.
        completion: the reply alone, without its prompt.

    Raises:
        DataError: a rule needs a reference or a column, and the prompt has none or an unusable one.
        StageError: a pattern took longer than `PATTERN_TIMEOUT_S`.
    """
    # Patterns and references are in NFC too: the same visible text may come composed or decomposed.
    text = unicodedata.normalize("NFC", completion)
    values = {rule.name: float(_passes(rule, text, prompt)) for rule in rule_set.rules}
    total_weight = sum(rule.weight for rule in rule_set.rules)
    mean = sum(rule.weight * values[rule.name] for rule in rule_set.rules) / total_weight
    limits = [rule.at_most for rule in rule_set.rules if rule.at_most is not None and not values[rule.name]]
    return RuleScore(min([mean, *limits]), values)


def pass_rates(rule_set: RuleSet, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Rule → share of the candidates that pass it. Raises what `score_with_rules` raises."""
    values = [score_with_rules(rule_set, RuledPrompt.of(candidate), candidate.completion).values for candidate in candidates]
    return {rule.name: sum(each[rule.name] for each in values) / max(1, len(values)) for rule in rule_set.rules}


def _passes(rule: Rule, text: str, prompt: RuledPrompt) -> bool:
    """Whether the NFC completion `text` passes one rule."""
    match rule:
        case MatchesRule():
            return _finds_any(rule, rule.any_of, rule.ignore_case, text, prompt.id)
        case AvoidsRule():
            return not _finds_any(rule, rule.none_of, rule.ignore_case, text, prompt.id)
        case ContainsReferenceRule():
            return _folded(_required_reference(rule, prompt)) in _folded(text)
        case MatchesFieldRule():
            return _finds_any(rule, _patterns_of_value(rule, prompt), rule.ignore_case, text, prompt.id)
        case NamesNoOtherRule():
            own = _folded(_required_reference(rule, prompt))
            found = _words_pattern(tuple(rule.words)).findall(_folded(text))
            return all(word in own for word in found)
        case EchoRule():
            return copied_share(text, prompt.text, ngram_words=rule.ngram_words) <= rule.max_copied_share
        case WordPairsRule():
            pairs, known = word_pairs(text), _known_pairs(rule.texts)
            return bool(pairs) and sum(pair in known for pair in pairs) >= rule.min_known_share * len(pairs)
        case LengthRule():
            return _within(len(text.strip()), rule.min_characters, rule.max_characters) and _within(
                len(text.split()), rule.min_words, rule.max_words
            )
        case RepetitionRule():
            return repeated_share(text, ngram_words=rule.ngram_words) <= rule.max_repeated_share
        case NumericAnswerRule():
            return last_number(text) == last_number(_required_reference(rule, prompt))


def _required_reference(rule: Rule, prompt: RuledPrompt) -> str:
    _require(rule, prompt, "Give every prompt row a `reference`, or take the rule out of the rule set.")
    return prompt.reference or ""


def _patterns_of_value(rule: MatchesFieldRule, prompt: RuledPrompt) -> Sequence[str]:
    values = f"{', '.join(list(rule.patterns)[:6])}{', …' if len(rule.patterns) > 6 else ''}"
    _require(rule, prompt, f"The rule has patterns for: {values}.")
    return rule.patterns[prompt.fields[rule.field]]


def _require(rule: Rule, prompt: RuledPrompt, hint: str) -> None:
    if lack := lack_of_prompt(rule, prompt):
        raise DataError(f"prompt {prompt.id!r} has {lack}; the rule {rule.name!r} (type {rule.type}) needs one", hint=hint)


def lack_of_prompt(rule: Rule, prompt: Any) -> str:
    """What a prompt (anything with `reference` and `fields`) has in place of what a rule needs; empty if it has that."""
    if isinstance(rule, MatchesFieldRule):
        value = prompt.fields.get(rule.field)
        if value is None:
            return f"no such column: {rule.field!r}"
        return "" if value in rule.patterns else f"{value!r} as {rule.field!r}, for which there is no pattern"
    if not rule.row_field:
        return ""
    if prompt.reference is None or not prompt.reference.strip():
        return "no `reference`"
    is_enough = not isinstance(rule, NumericAnswerRule) or last_number(prompt.reference) is not None
    return "" if is_enough else "no number in `reference`"


def prompt_needs(rows: str, scorers: Mapping[FieldPath, Any]) -> Iterator[RowNeed]:
    """What the rules among a stage's scorers read in its prompts.

    Args:
        rows: the stage's field that names the prompts, or what was made from them.
        scorers: scorer by its path in the stage.
    """
    for path, scorer in scorers.items():
        for rule in scorer.rules.rules if isinstance(scorer, RulesScorer) else ():
            if rule.row_field:
                reason = f"the rule {rule.name!r} (type {rule.type}) needs one"
                instead = "correct the rule" if isinstance(rule, MatchesFieldRule) else "take the rule out"
                yield RowNeed(rows, path, rule.row_field, partial(lack_of_prompt, rule), reason, instead)


@lru_cache(maxsize=64)
def _words_pattern(words: tuple[str, ...]) -> regex.Pattern[str]:
    # The longest first, so that a part of another word is not found in its place. Behind a word in Latin letters none may follow
    # ("watch" is not in "watching"); behind Korean ones particles do.
    folded = sorted((_folded(word) for word in words), key=lambda word: (-len(word), word))
    return regex.compile(rf"(?<!\w)(?:{'|'.join(map(regex.escape, folded))})(?!\p{{Latin}})")


@lru_cache(maxsize=16)
def _known_pairs(texts: str) -> frozenset[tuple[str, ...]]:
    return frozenset(word_pairs(unicodedata.normalize("NFC", texts)))


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
