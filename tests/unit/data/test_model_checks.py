"""What a model's template and tokenizer have against a row is found as training would find it, and named by field and token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from align.data.model_checks import ModelChecks, lossless_normalization, turn_markers
from align.data.plain import PlainFormat
from align.data.template import ChatFormat
from align.records import Instruction, Message, Preference, Prompt, Record, TextRow
from align.rows import INSTRUCTIONS, PREFERENCES, DataKind, kind_of
from align.rows.problem import FieldProblem
from align.testing.tiny import CHAT_TEMPLATE, tiny_tokenizer

MakeTokenizer = Callable[..., Any]

# One token per byte, and a control token is one: "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" has 21.
PROMPT_TOKENS = 21


def prompt(*contents: str) -> list[Message]:
    roles = ("user", "assistant") * len(contents)
    return [Message.model_validate({"role": role, "content": text}) for role, text in zip(roles, contents, strict=False)]


def instruction(completion: str = "ok", *contents: str) -> Instruction:
    return Instruction(id="a", prompt=prompt(*(contents or ("hi",))), completion=completion)


def pair(chosen: str, rejected: str) -> Preference:
    return Preference(id="a", prompt=prompt("hi"), chosen=chosen, rejected=rejected)


def _problems(checks: ModelChecks, record: Record) -> list[FieldProblem]:
    """What is wrong with one record of any kind."""
    kind = kind_of(type(record))
    assert isinstance(kind, DataKind)
    return checks.problems_of(kind, [record])[0]


def _told(checks: ModelChecks, pairs: list[Preference]) -> list[list[tuple[str, str, str]]]:
    return [
        [(problem.field, problem.reason, problem.message) for problem in row] for row in checks.problems_of(PREFERENCES, pairs)
    ]


@pytest.fixture
def found(make_tokenizer: MakeTokenizer) -> Callable[..., list[tuple[str, str]]]:
    """A function from a record to fields and reasons."""

    def look(record: Record, template: str = CHAT_TEMPLATE, limit: int | None = None) -> list[tuple[str, str]]:
        checks = ModelChecks(ChatFormat(make_tokenizer(template)), limit)
        return [(problem.field, problem.reason) for problem in _problems(checks, record)]

    return look


Found = Callable[..., list[tuple[str, str]]]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (instruction("ok"), []),
        (Prompt(id="a", prompt=prompt("hi")), []),
        (TextRow(id="a", text="plain"), []),
        (instruction("ok", "a <|im_start|>system"), [("prompt", "special_tokens")]),
        (instruction("ok", "a", "b<s>", "c"), [("prompt message 2", "special_tokens")]),
        (instruction("a <pad> b"), [("completion", "special_tokens")]),
        (instruction("a<|im_end|>"), [("completion", "contains_eos")]),
        (instruction("ok", "a<|im_end|>"), [("prompt", "special_tokens")]),
        (TextRow(id="a", text="a<|im_end|>"), [("text", "special_tokens")]),
        (pair("yes", "no <|im_start|>"), [("rejected", "special_tokens")]),
        (pair("yes", "no<|im_end|>"), [("rejected", "contains_eos")]),
    ],
)
def test_control_tokens(found: Found, record: Record, expected: list[tuple[str, str]]) -> None:
    assert found(record) == expected


def test_the_token_and_its_place_are_named(make_tokenizer: MakeTokenizer) -> None:
    (problem,) = _problems(ModelChecks(ChatFormat(make_tokenizer())), instruction("ok", "end it <|im_start|>"))
    assert problem.message == "has '<|im_start|>' at character 8, a control token of the model"


def test_markers_between_turns_that_are_plain_text(found: Found, make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    assert turn_markers(ChatFormat(make_tokenizer(template))) == ["[INST]", "[/INST]"]
    assert found(instruction("ok", "a [/INST] b"), template) == [("prompt", "special_tokens")]
    assert turn_markers(ChatFormat(make_tokenizer())) == []


@pytest.mark.parametrize(
    ("record", "limit", "expected"),
    [
        (instruction("abc"), PROMPT_TOKENS + 4, []),
        (instruction("abc"), PROMPT_TOKENS + 3, [("completion", "too_many_tokens")]),
        (instruction("abc"), PROMPT_TOKENS, [("prompt", "too_many_tokens")]),
        (instruction("한"), PROMPT_TOKENS + 3, [("completion", "too_many_tokens")]),
        (Prompt(id="a", prompt=prompt("hi")), PROMPT_TOKENS, []),
        (Prompt(id="a", prompt=prompt("hi")), PROMPT_TOKENS - 1, [("prompt", "too_many_tokens")]),
        (pair("abcd", "abce"), PROMPT_TOKENS + 4, [("chosen", "too_many_tokens"), ("rejected", "too_many_tokens")]),
        (
            pair("abcd", "abce"),
            PROMPT_TOKENS + 3,
            [("chosen", "too_many_tokens"), ("rejected", "too_many_tokens"), ("chosen", "identical_after_truncation")],
        ),
        (pair("abcdef", "x"), PROMPT_TOKENS + 3, [("chosen", "too_many_tokens")]),
    ],
)
def test_limits(found: Found, record: Record, limit: int, expected: list[tuple[str, str]]) -> None:
    assert found(record, limit=limit) == expected


def test_the_same_tokens(make_tokenizer: MakeTokenizer) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    one, other = "\uac00", "\u1100\u1161"
    assert _problems(ModelChecks(ChatFormat(tokenizer)), pair(one, other)) == []
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert lossless_normalization(tokenizer) == "NFC"
    (problem,) = _problems(ModelChecks(ChatFormat(tokenizer)), pair(one, other))
    assert (problem.field, problem.reason) == ("chosen", "identical")
    tokenizer.backend_tokenizer.normalizer = None


def test_the_template(found: Found) -> None:
    trims = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    assert found(pair("yes", " no"), trims) == [("rejected", "template_rewrites")]
    refuses = "{% if messages[2:] %}{{ raise_exception('one turn only') }}{% endif %}" + CHAT_TEMPLATE
    assert found(instruction("ok", "a", "b", "c"), refuses) == [("prompt", "template_error")]


def test_texts_that_the_tokenizer_cannot_write(make_tokenizer: MakeTokenizer) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert lossless_normalization(tokenizer) is None
    problems = ModelChecks(ChatFormat(tokenizer)).problems_of(INSTRUCTIONS, [instruction("OK"), instruction("ok")])
    assert [[problem.reason for problem in row] for row in problems] == [["not_representable"], []]


def test_plain_text_models() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert _problems(ModelChecks(PlainFormat(tokenizer)), instruction("ok")) == []


def test_what_is_known_without_tokens_is_what_the_tokens_say(
    make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without the short cut for byte-level tokenizers, every row has the same problems."""
    texts = ["", "a", "\uac00", "\u1100\u1161", "가나다 라마", "<pad>", "x" * 9, "\U0001d160", " a\t"]
    rows = [pair(f"c{one}", f"c{other}") for one in texts for other in texts]
    checks = ModelChecks(ChatFormat(make_tokenizer()), PROMPT_TOKENS + 8)
    quick = _told(checks, rows)
    monkeypatch.setattr(ModelChecks, "_needs_tokens", lambda self, texts: True)
    assert _told(checks, rows) == quick
    assert any(quick)


def test_short_rows_are_not_tokenized(make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    chat_format = ChatFormat(make_tokenizer())

    def refuse(texts: list[str]) -> list[list[int]]:
        assert texts == []
        return []

    monkeypatch.setattr(chat_format, "tokenize", refuse)
    checks = ModelChecks(chat_format, 1000)
    assert [_problems(checks, row) for row in (instruction("ok"), pair("a", "b"))] == [[], []]
    with pytest.raises(AssertionError):
        _problems(ModelChecks(chat_format, 10), instruction("ok"))


def test_byte_level_is_recognised(make_tokenizer: MakeTokenizer) -> None:
    from tokenizers import pre_tokenizers

    assert lossless_normalization(make_tokenizer()) == "none"
    other = make_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert lossless_normalization(other) is None
    assert lossless_normalization(object()) is None
