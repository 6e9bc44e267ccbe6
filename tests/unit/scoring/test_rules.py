"""The declarative rules: each one passes what it should and fails what it should, in Korean as in English."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.config.rules import RuleSet
from align.errors import DataError, StageError
from align.scoring import rules as scoring
from align.scoring.numbers import last_number
from align.scoring.rules import RuledPrompt, repeated_share, score_with_rules  # type: ignore[attr-defined]


def rule_set(*rules: dict[str, Any]) -> RuleSet:
    return RuleSet.model_validate({"rules": [{"name": f"rule-{number}", **rule} for number, rule in enumerate(rules)]})


def scored(rule: dict[str, Any], completion: str, reference: str | None = None, **prompt: Any) -> float:
    return score_with_rules(rule_set(rule), RuledPrompt("p-1", reference, **prompt), completion).score


SYMPATHY = {"type": "matches", "any_of": ["속상했겠", r"\bso sorry\b"]}
LECTURE = {"type": "avoids", "none_of": [r"[가-힣]야 해", r"\bshould\b"]}
NUMBER = {"type": "numeric_answer"}
REPETITION = {"type": "repetition", "ngram_words": 3, "max_repeated_share": 0.2}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("정말 속상했겠다.", 1.0), ("I'm SO SORRY.", 1.0), ("다음에는 공부해.", 0.0), ("also sorryish", 0.0), ("", 0.0)],
)
def test_matches(completion: str, expected: float) -> None:
    assert scored(SYMPATHY, completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("오답 노트를 써야 해.", 0.0), ("You Should rest.", 0.0), ("내가 옆에 있을게.", 1.0), ("", 1.0)],
)
def test_avoids(completion: str, expected: float) -> None:
    assert scored(LECTURE, completion) == expected


def test_case_matters_when_asked() -> None:
    assert scored({**SYMPATHY, "ignore_case": False}, "SO SORRY") == 0.0
    assert scored({**LECTURE, "ignore_case": False}, "You SHOULD rest") == 1.0


def test_decomposed_hangul_is_the_same_text() -> None:
    apart = unicodedata.normalize("NFD", "수학 시험 때문에 속상했겠다.")
    assert scored(SYMPATHY, apart) == 1.0
    assert scored({"type": "matches", "any_of": [unicodedata.normalize("NFD", "속상")]}, "속상했겠다") == 1.0
    assert scored({"type": "contains_reference"}, apart, reference="수학 시험") == 1.0
    assert scored({"type": "length", "max_characters": 16}, apart) == 1.0


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("수학 시험은 어려웠지.", "수학 시험", 1.0),
        ("영어 시험은 어려웠지.", "수학 시험", 0.0),
        ("Your KEYS!", "keys", 1.0),
        ("Your wallet!", "keys", 0.0),
        ("Die STRASSE", "straße", 1.0),
    ],
)
def test_contains_reference(completion: str, reference: str, expected: float) -> None:
    assert scored({"type": "contains_reference"}, completion, reference) == expected


@pytest.mark.parametrize("rule", [{"type": "contains_reference"}, NUMBER])
@pytest.mark.parametrize("reference", [None, "", "  "])
def test_a_missing_reference_names_the_prompt(rule: dict[str, Any], reference: str | None) -> None:
    with pytest.raises(DataError, match="'p-1' has no `reference`"):
        scored(rule, "text", reference)


def test_a_reference_without_a_number_names_the_prompt() -> None:
    with pytest.raises(DataError, match="'p-1'.*no number"):
        scored(NUMBER, "4", "four")


@pytest.mark.parametrize(
    ("bounds", "completion", "expected"),
    [
        ({"min_characters": 3}, "속상해", 1.0),
        ({"min_characters": 4}, "속상해", 0.0),
        ({"max_characters": 3}, " 속상해\n", 1.0),
        ({"max_characters": 2}, "속상해", 0.0),
        ({"min_words": 2}, "정말 속상해", 1.0),
        ({"min_words": 3}, "정말 속상해", 0.0),
        ({"max_words": 2}, "정말  속상해", 1.0),
        ({"max_words": 1}, "정말 속상해", 0.0),
        ({"min_words": 1, "max_characters": 3}, "정말 속상해", 0.0),
    ],
)
def test_length(bounds: dict[str, int], completion: str, expected: float) -> None:
    assert scored({"type": "length", **bounds}, completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("I hear you. That was a long and hard day for you.", 1.0),
        ("I am here for you. I am here for you. I am here for you.", 0.0),
        ("정말 속상했겠다. 정말 속상했겠다.", 0.0),
        ("정말 속상했겠다. 내가 옆에 있을게.", 1.0),
        ("그래! 그래, 그래.", 1.0),
        ("", 1.0),
    ],
)
def test_repetition(completion: str, expected: float) -> None:
    assert scored(REPETITION, completion) == expected


def test_repeated_share_counts_what_came_before() -> None:
    assert repeated_share("a b a b", ngram_words=2) == pytest.approx(1 / 3)
    assert repeated_share("A b. a b!", ngram_words=3) == pytest.approx(1 / 2)
    assert repeated_share("one two three", ngram_words=3) == 0.0


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("So 3 + 4 = 7.", "7", 1.0),
        ("It is 7, not 8", "7", 0.0),
        ("1,234,567 won", "1234567", 1.0),
        ("The answer is -5", "5", 0.0),
        ("The answer is -5", "-5.0", 1.0),
        ("The answer is −5", "-5", 1.0),
        ("from 9-5", "5", 1.0),
        ("about .50", "0.5", 1.0),
        ("3.14.", "3.14", 1.0),
        ("답은 사과 12개야", "12", 1.0),
        ("no number", "12", 0.0),
        ("72", "work: 70 + 2 #### 72", 1.0),
    ],
)
def test_numeric_answer(completion: str, reference: str, expected: float) -> None:
    assert scored(NUMBER, completion, reference) == expected


@given(st.integers(min_value=-(10**9), max_value=10**9))
def test_any_integer_is_read_back(number: int) -> None:
    assert last_number(f"we get {number:,}.") == number
    assert last_number(f"답: {number}원") == number


@given(st.text())
def test_repeated_share_is_a_share(text: str) -> None:
    assert 0 <= repeated_share(text, ngram_words=3) < 1


def test_the_score_is_the_weighted_mean() -> None:
    rules = rule_set({**SYMPATHY, "weight": 3.0}, {**LECTURE, "weight": 2}, {"type": "length", "min_words": 1})
    result = score_with_rules(rules, RuledPrompt("p"), "속상했겠다. 그래도 공부해야 해.")
    assert result.score == pytest.approx(4 / 6)
    assert result.values == {"rule-0": 1.0, "rule-1": 0.0, "rule-2": 1.0}


@given(st.text(), st.text(min_size=1).filter(str.strip))
def test_every_text_has_a_score_from_0_to_1(completion: str, reference: str) -> None:
    rules = rule_set(SYMPATHY, LECTURE, REPETITION, {"type": "contains_reference"}, {"type": "length", "max_words": 9})
    result = score_with_rules(rules, RuledPrompt("p", reference), completion)
    assert 0 <= result.score <= 1
    assert set(result.values.values()) <= {0.0, 1.0}


@pytest.mark.parametrize("key_and_type", [("any_of", "matches"), ("none_of", "avoids")])
def test_a_pattern_that_does_not_compile_is_shown(key_and_type: tuple[str, str]) -> None:
    key, kind = key_and_type
    with pytest.raises(ValidationError, match=r"'\(속상' is not a regular expression"):
        rule_set({"type": kind, key: ["fine", "(속상"]})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "at least 1 item"),
        ([{"name": "a", **NUMBER}, {"name": "a", **REPETITION}], "given more than once: a"),
        ([{"name": "a", "type": "length"}], "at least one of"),
        ([{"name": "a", "type": "length", "min_words": 5, "max_words": 4}], "nothing could pass"),
        ([{"name": "a", "type": "matches", "any_of": []}], "at least 1 item"),
        ([{"name": "a", "type": "numeric_answer", "weight": 0}], "greater than 0"),
        ([{"name": "a", "type": "guess"}], "guess"),
        ([{"name": "a", "type": "numeric_answer", "colour": 1}], "colour"),
    ],
)
def test_a_wrong_rule_set_is_refused(rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RuleSet.model_validate({"rules": rules})


def test_a_hostile_pattern_cannot_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PATTERN_TIMEOUT_S", 0.05)
    with pytest.raises(StageError, match=r"\(a\|aa\)\+\$.*'p-1'"):
        scored({"type": "matches", "any_of": [r"^(a|aa)+$"]}, "a" * 60 + "b")


EVENTS = {"type": "matches_field", "field": "event", "patterns": {"lost": [r"\blosing your\b", "잃어버"], "rain": ["비가"]}}


@pytest.mark.parametrize(
    ("event", "completion", "expected"),
    [
        ("lost", "Losing your keys must hurt.", 1.0),
        ("lost", "열쇠를 잃어버리다니 속상했겠다.", 1.0),
        ("lost", "비가 와서 속상했겠다.", 0.0),
        ("rain", "비가 와서 속상했겠다.", 1.0),
    ],
)
def test_patterns_of_a_columns_value(event: str, completion: str, expected: float) -> None:
    assert scored(EVENTS, completion, fields={"event": event}) == expected


@pytest.mark.parametrize(("fields", "named"), [({}, "no such column"), ({"event": "fire"}, "'fire'")])
def test_a_column_that_a_rule_cannot_use_is_named(fields: dict[str, str], named: str) -> None:
    with pytest.raises(DataError, match=named) as caught:
        scored(EVENTS, "속상했겠다.", fields=fields)
    assert "lost, rain" in str(caught.value.hint)


OTHERS = {"type": "names_no_other", "words": ["watch", "water bottle", "bottle", "시험", "수학 시험", "엄마"]}


@pytest.mark.parametrize(
    ("reference", "completion", "expected"),
    [
        ("watch", "Losing your watch is so unfair.", 1.0),
        ("watch", "Losing your watch and your bottle is so unfair.", 0.0),
        ("umbrella", "Watching it go must hurt.", 1.0),
        ("umbrella", "Your Watch!", 0.0),
        ("water bottle", "Your Water Bottle. The bottle was yours.", 1.0),
        ("bottle", "Your water bottle.", 0.0),
        ("수학 시험", "수학 시험을 잘 보고 싶었겠다. 시험은 어렵지.", 1.0),
        ("수학 시험", "엄마가 화를 냈겠다.", 0.0),
        ("우산", "시험은 어렵지.", 0.0),
    ],
)
def test_other_things_than_the_prompts_own(reference: str, completion: str, expected: float) -> None:
    assert scored(OTHERS, completion, reference) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("I lost my keys at the gym today.", 0.0),
        ("Losing your keys at the gym must have been hard.", 1.0),
        ("Keys at the", 0.0),
        ("Oh dear.", 1.0),
        ("the gym", 0.0),
        ("", 1.0),
    ],
)
def test_an_echo(completion: str, expected: float) -> None:
    rule = {"type": "echo", "ngram_words": 3, "max_copied_share": 0.3}
    assert scored(rule, completion, text="Today I lost my keys at the gym.") == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("That must have been hard. I'm here for you.", 1.0),
        ("I'm here. That must have been sad.", 1.0),  # one of five pairs is new
        ("Hard been must here you that for have.", 0.0),
        ("정말 속상했겠다. 내가 옆에 있을게.", 1.0),
        ("속상했겠다 옆에 정말 있을게 내가", 0.0),
        ("Hard.", 0.0),
        ("", 0.0),
    ],
)
def test_words_in_an_order_that_nobody_writes(completion: str, expected: float) -> None:
    texts = "That must have been hard.\nI'm here for you. 정말 속상했겠다.\n내가 옆에 있을게."
    assert scored({"type": "word_pairs", "texts": texts, "min_known_share": 0.6}, completion) == expected


def test_a_rule_may_limit_the_score() -> None:
    rules = rule_set({**SYMPATHY, "weight": 3}, {**LECTURE, "at_most": 0.5}, {"type": "length", "min_words": 3, "at_most": 0.1})

    def total(completion: str) -> float:
        return score_with_rules(rules, RuledPrompt("p"), completion).score

    assert total("I am so sorry.") == 1.0
    assert total("I am so sorry. You should rest.") == 0.5  # and not 4 of 5
    assert total("You should rest.") == pytest.approx(0.2)  # the limit raises nothing
    assert total("You should") == 0.0
    assert total("So sorry.") == 0.1
