"""The rules for the form of a completion: JSON that fits a schema, the share of a script."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from align.config.rules import RuleSet
from align.scoring import json_text
from align.scoring.rules import RuledPrompt, score_with_rules

PERSON = {
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z가-힣]"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "uniqueItems": True, "maxItems": 2},
    },
}


def rules_of(rule: dict[str, Any]) -> RuleSet:
    return RuleSet.model_validate({"rules": [{"name": "form", **rule}]})


def passes(rule: dict[str, Any], completion: str) -> bool:
    return score_with_rules(rules_of(rule), RuledPrompt("p-1"), completion).score == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        '{"name": "Ada", "age": 36}',
        '{"age": 0, "name": "민지"}',
        '\n {"name":"Ada","age":36} \n',
        '```json\n{"name": "Ada", "age": 36}\n```',
        '```\n{"name": "Ada", "age": 36}\n```',
        'Here it is:\n```json\n{"name": "Ada", "age": 36}\n```\nAnything else?',
        '{"name": "Ada", "age": 36.0}',
        '{"name": "Ada", "age": 36, "tags": []}',
        '{"name": "Ada", "age": 36, "tags": ["a", 1]}',
        '{"name": "\\u0041da", "age": 36}',
    ],
)
def test_json_that_fits(completion: str) -> None:
    assert passes({"type": "json", "json_schema": PERSON}, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Ada, 36",
        "null",
        '{"name": "Ada"}',
        '{"name": "Ada", "age": "36"}',
        '{"name": "Ada", "age": -1}',
        '{"name": "Ada", "age": 36.5}',
        '{"name": "Ada", "age": NaN}',
        '{"name": "Ada", "age": 36, "age": 37}',
        '{"name": "Ada", "age": 36, "more": 1}',
        '{"name": "ada", "age": 36}',
        '{"name": "Ada", "age": 36, "tags": ["a", "a"]}',
        "{'name': 'Ada', 'age': 36}",
        '{"name": "Ada", "age": 36,}',
        '{"name": "Ada", "age": 36} and more',
        '```json\n{"name": "Ada", "age": 36}\n```\nor\n```json\n{"name": "Bob", "age": 36}\n```',
        '[{"name": "Ada", "age": 36}]',
    ],
)
def test_json_that_does_not_fit(completion: str) -> None:
    assert not passes({"type": "json", "json_schema": PERSON}, completion)


def test_any_json_fits_no_schema() -> None:
    assert passes({"type": "json"}, "[1, 2]")
    assert not passes({"type": "json"}, "[1, 2")


@pytest.mark.parametrize(
    "completion", ["[" * 10**6, '{"a":' * 10**5, "9" * 10**6, "[" * 9_999 + "]" * 9_999, "1" * 10**4, "`" * 10**6]
)
def test_hostile_json_takes_no_time(completion: str) -> None:
    started = time.process_time()
    assert not passes({"type": "json", "json_schema": {"uniqueItems": True}}, completion)
    assert time.process_time() - started < 2


def test_many_different_entries_take_no_time() -> None:
    started = time.process_time()
    assert passes({"type": "json", "json_schema": {"uniqueItems": True}}, f"[{','.join(f'[{n}]' for n in range(2_500))}]")
    assert time.process_time() - started < 5


def test_a_hostile_pattern_of_a_schema_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "PATTERN_TIMEOUT_S", 0.05)
    assert not passes({"type": "json", "json_schema": {"pattern": "^(a|aa)+$"}}, f'"{"a" * 60}b"')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "not a JSON Schema: type"),
        ({"$ref": "https://example.com/schema.json"}, r"\$ref is not supported"),
        ({"properties": {"a": {"$ref": "#"}}}, r"properties.a.\$ref is not supported"),
        ({"patternProperties": {"^(a+)+$": {}}}, "patternProperties is not supported"),
        ({"properties": {"properties": {"$ref": "#"}}}, r"\$ref is not supported"),
        ({"properties": {"a": {"pattern": "(a"}}}, "'\\(a' is not a 'regex'"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        rules_of({"type": "json", "json_schema": schema})


HANGUL = {"type": "language", "script": "hangul", "min_share": 0.75}
LITTLE_LATIN = {"type": "language", "script": "latin", "max_share": 0.25}


@pytest.mark.parametrize(
    "completion",
    [
        "안녕",
        "안녕하세요.",
        "안녕 123!",
        "가나다a",
        "ㅋㅋㅋ",
        "서울, 2024",
        "가나다라마바 ab",
        "네.",
        "가가가 é",
        "(한글) – 한글",
    ],
)
def test_enough_hangul(completion: str) -> None:
    assert passes(HANGUL, completion)
    assert passes(LITTLE_LATIN, completion)


@pytest.mark.parametrize(
    "completion", ["hello", "안녕 hello", "가나a", "Ça va", "가b나c", "한글 in Latin", "abc 123", "x", "straße 길", "가나다 abcd"]
)
def test_too_little_hangul(completion: str) -> None:
    assert not passes(HANGUL, completion)
    assert not passes(LITTLE_LATIN, completion)


@pytest.mark.parametrize("completion", ["", "123", "!?", "😀"])
def test_without_letters_the_share_is_0(completion: str) -> None:
    assert not passes(HANGUL, completion)
    assert passes(LITTLE_LATIN, completion)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"script": "korean", "min_share": 0.5}, "not the name of a script"),
        ({"script": "hangul}|.|\\p{L", "min_share": 0.5}, "pattern"),
        ({"script": "hangul"}, "needs min_share, max_share"),
        ({"script": "hangul", "min_share": 0.5, "max_share": 0.4}, "nothing could pass"),
    ],
)
def test_a_language_rule_that_means_nothing_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        rules_of({"type": "language", **rule})
