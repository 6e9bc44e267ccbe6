"""Scoring a completion with declarative rules: pure Python, the same value on every machine."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import regex

from align.config.reference import FieldPath
from align.config.row_need import RowNeed
from align.config.rules import (
    AnswerRule,
    AvoidsRule,
    ChoiceAnswerRule,
    ContainsReferenceRule,
    EchoRule,
    ExpressionRule,
    InstructionsRule,
    JsonRule,
    LanguageRule,
    LengthRule,
    MatchesFieldRule,
    MatchesRule,
    MathAnswerRule,
    NamesNoOtherRule,
    NumericAnswerRule,
    RepetitionRule,
    Rule,
    RuleBase,
    RuleSet,
    WordPairsRule,
)
from align.config.sections import RulesScorer
from align.data.quality.repetition import copied_share, repeated_share, word_pairs
from align.errors import DataError, StageError
from align.records import Candidate
from align.scoring.choice import choice_of
from align.scoring.expression import reaches, whole_numbers
from align.scoring.instructions import Instruction, follows_all, read_instructions
from align.scoring.json_text import fits_schema
from align.scoring.math_answer import equal_answers
from align.scoring.numbers import last_number, only_number

PATTERN_TIMEOUT_S = 5.0
"""Seconds one search may take. Replies are short: only a pattern that backtracks without end comes near it."""


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


def pass_rates(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Rule → share of the candidates that pass it, from the `values` of each candidate's `RuleScore`; empty without any."""
    return {name: sum(each[name] for each in values) / len(values) for name in (values[0] if values else {})}


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
        case LengthRule() | LanguageRule():
            return _is_within_bounds(rule, text)
        case RepetitionRule():
            return repeated_share(text, ngram_words=rule.ngram_words) <= rule.max_repeated_share
        case JsonRule() | InstructionsRule():
            return _has_form(rule, text, prompt)
        case NumericAnswerRule() | ChoiceAnswerRule() | ExpressionRule() | MathAnswerRule():
            return _answers(rule, text, prompt)


def _has_form(rule: JsonRule | InstructionsRule, text: str, prompt: RuledPrompt) -> bool:
    if isinstance(rule, JsonRule):
        return fits_schema(text, rule.json_schema)
    _require(rule, prompt, "Correct the row, or take the prompt out of the file.")
    return follows_all(text, _instructions(rule, prompt), loose=rule.loose)


def _answers(
    rule: NumericAnswerRule | ChoiceAnswerRule | ExpressionRule | MathAnswerRule, text: str, prompt: RuledPrompt
) -> bool:
    """Whether the answer in the NFC completion `text` is the right one."""
    _require(rule, prompt, "Give every prompt row one, or take the rule out of the rule set.")
    answer = text if rule.pattern is None else _last_match(rule, rule.pattern, text, prompt.id)
    if answer is None:
        return False
    match rule:
        case NumericAnswerRule():
            # Where a pattern says what the answer is, a second number in it is a second answer.
            number, right = (last_number if rule.pattern is None else only_number)(answer), last_number(prompt.reference or "")
            # Through Decimal, since a float of 0.1 is not a tenth.
            tolerance = Fraction(Decimal(str(rule.tolerance)))
            return number is not None and right is not None and abs(number - right) <= tolerance
        case ChoiceAnswerRule():
            choice = choice_of(answer, rule.choices)
            return choice is not None and choice == choice_of(prompt.reference or "", rule.choices)
        case ExpressionRule():
            target = last_number(_target(rule, prompt) or "")
            numbers = whole_numbers(prompt.fields[rule.numbers])
            return target is not None and numbers is not None and reaches(answer, numbers, target, rule.use)
        case MathAnswerRule():
            return _equals(rule, prompt.reference or "", answer, prompt)


def _equals(rule: MathAnswerRule, reference: str, answer: str, prompt: RuledPrompt) -> bool:
    verdict = equal_answers(reference, answer, timeout_seconds=rule.timeout_seconds)
    if verdict is None:
        raise DataError(
            f"prompt {prompt.id!r}: no mathematical answer can be read in the reference {reference[:60]!r}; "
            f"the rule {rule.name!r} (type {rule.type}) needs one",
            hint="Correct the row, or take the prompt out of the file.",
        )
    return verdict


def _instructions(rule: InstructionsRule, prompt: Any) -> list[Instruction]:
    return read_instructions(prompt.fields[rule.ids], prompt.fields.get(rule.arguments, ""))


def _target(rule: ExpressionRule, prompt: Any) -> str | None:
    target: str | None = prompt.reference if rule.target is None else prompt.fields.get(rule.target)
    return target


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
    if isinstance(rule, ExpressionRule):
        return _lack_of_problem(rule, prompt)
    if isinstance(rule, InstructionsRule):
        return _lack_of_instructions(rule, prompt)
    if not rule.row_field:
        return ""
    if prompt.reference is None or not prompt.reference.strip():
        return "no `reference`"
    if isinstance(rule, NumericAnswerRule) and last_number(prompt.reference) is None:
        return "no number in `reference`"
    if isinstance(rule, ChoiceAnswerRule) and choice_of(prompt.reference, rule.choices) is None:
        return f"none of {', '.join(rule.choices)} in `reference`"
    return ""


def _lack_of_problem(rule: ExpressionRule, prompt: Any) -> str:
    numbers, target = prompt.fields.get(rule.numbers), _target(rule, prompt)
    if numbers is None:
        return f"no such column: {rule.numbers!r}"
    if whole_numbers(numbers) is None:
        return f"{numbers[:40]!r} as {rule.numbers!r}, which are no whole numbers such as '3 5 7'"
    place = "`reference`" if rule.target is None else f"column {rule.target!r}"
    return f"no number in {place}" if last_number(target or "") is None else ""


def _lack_of_instructions(rule: InstructionsRule, prompt: Any) -> str:
    if prompt.fields.get(rule.ids) is None:
        return f"no such column: {rule.ids!r}"
    try:
        _instructions(rule, prompt)
    except ValueError as error:
        return str(error)
    return ""


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
                instead = "correct the rule" if rule.row_field.startswith("fields.") else "take the rule out"
                instead = "leave these prompts out" if isinstance(rule, InstructionsRule) else instead
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
    pattern = ""
    # Around the loop: a rule may have hundreds of patterns.
    try:
        for pattern in patterns:
            if _compiled(pattern, ignore_case).search(text, timeout=PATTERN_TIMEOUT_S):
                return True
    except TimeoutError:
        raise _took_too_long(rule, pattern, text, prompt_id) from None
    return False


def _last_match(rule: AnswerRule, pattern: str, text: str, prompt_id: str) -> str | None:
    """What the pattern's first group found last, or the whole of it; None if nothing matches."""
    try:
        found = list(_compiled(pattern, True).finditer(text, timeout=PATTERN_TIMEOUT_S))
    except TimeoutError:
        raise _took_too_long(rule, pattern, text, prompt_id) from None
    return found[-1][1 if found[-1].re.groups else 0] if found else None


def _took_too_long(rule: RuleBase, pattern: str, text: str, prompt_id: str) -> StageError:
    return StageError(
        f"rule {rule.name!r}: the pattern {pattern!r} took more than {PATTERN_TIMEOUT_S:g} s"
        f" on a completion of prompt {prompt_id!r} ({len(text)} characters)",
        hint="Write the pattern without nested repetition such as (a+)+.",
    )


def _folded(text: str) -> str:
    """For comparing without regard to case; NFC again, since case folding can undo it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _is_within_bounds(rule: LengthRule | LanguageRule, text: str) -> bool:
    if isinstance(rule, LanguageRule):
        return _within(_share_of_letters(rule.script, text), rule.min_share, rule.max_share)
    return _within(len(text.strip()), rule.min_characters, rule.max_characters) and _within(
        len(text.split()), rule.min_words, rule.max_words
    )


def _share_of_letters(script: str, text: str) -> float:
    letters = len(_compiled(r"\p{L}", False).findall(text))
    return len(_compiled(rf"(?=\p{{L}})\p{{Script={script}}}", False).findall(text)) / max(1, letters)


def _within(count: float, least: float | None, most: float | None) -> bool:
    return (least is None or count >= least) and (most is None or count <= most)
