"""Rows in tokens: what does not fit is named or dropped, never cut."""

from __future__ import annotations

from typing import Any

import pytest

from align.data.encoding import encode_instructions, encode_preferences, encode_prompts
from align.data.template import ChatFormat
from align.errors import DataError
from align.records import Instruction, Message, Preference, Prompt


@pytest.fixture
def chat_format(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer)


def _where(line: int | None) -> str:
    return "x.jsonl" if line is None else f"x.jsonl:{line}"


def _prompt(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def _instruction(number: int, prompt: str = "a", completion: str = "b") -> Instruction:
    return Instruction(id=f"i{number}", line=number, prompt=_prompt(prompt), completion=completion)


# <|im_start|> user \n a <|im_end|> \n <|im_start|> assistant \n, one token per byte or special token
PROMPT_TOKENS = 1 + 4 + 1 + 1 + 1 + 1 + 1 + 9 + 1


def test_the_limit_counts_prompt_completion_and_end(chat_format: ChatFormat) -> None:
    rows = [_instruction(1), _instruction(2, completion="bc")]
    encoded = encode_instructions(rows, chat_format, max_tokens=PROMPT_TOKENS + 2, on_invalid="drop", where=_where)
    lengths = [(row.id, len(row.prompt_token_ids), len(row.completion_token_ids)) for row in encoded.rows]
    assert lengths == [("i1", PROMPT_TOKENS, 2)]
    assert encoded.dropped() == {"too_long": 1}
    assert encoded.drops[0].detail == f"prompt and completion: {PROMPT_TOKENS + 3} tokens; max_tokens is {PROMPT_TOKENS + 2}"


def test_ids_are_those_of_encoding_each_row_alone(chat_format: ChatFormat) -> None:
    rows = [
        _instruction(n, prompt=p, completion=c) for n, (p, c) in enumerate([("a", "x"), ("b", "x"), ("a", "가 "), ("a", "x")])
    ]
    encoded = encode_instructions(rows, chat_format, max_tokens=100, on_invalid="error", where=_where)
    for record, row in zip(rows, encoded.rows, strict=True):
        assert row.prompt_token_ids == chat_format.encode_prompt(record.prompt)
        assert row.completion_token_ids == chat_format.encode_completion(record.prompt, record.completion)


def test_the_error_names_every_row(chat_format: ChatFormat) -> None:
    rows = [_instruction(1), _instruction(2, completion="x" * 90), _instruction(3, completion="<|im_end|>")]
    with pytest.raises(DataError) as caught:
        encode_instructions(rows, chat_format, max_tokens=50, on_invalid="error", where=_where)
    message = str(caught.value)
    assert message.startswith("x.jsonl: 2 of 3 rows cannot be used (")
    assert "x.jsonl:2: i2: prompt and completion:" in message
    assert "x.jsonl:3: i3: the completion contains the end-of-sequence token" in message


def test_drops_are_in_the_order_of_the_rows(chat_format: ChatFormat) -> None:
    rows = [_instruction(1, completion="x" * 90), _instruction(2, completion="<|im_end|>"), _instruction(3)]
    encoded = encode_instructions(rows, chat_format, max_tokens=50, on_invalid="drop", where=_where)
    assert [(drop.id, drop.drop_reason) for drop in encoded.drops] == [("i1", "too_long"), ("i2", "contains_eos")]


@pytest.mark.parametrize("rows", [[], [_instruction(1, completion="x" * 90)]])
def test_no_row_left_is_an_error(chat_format: ChatFormat, rows: list[Instruction]) -> None:
    with pytest.raises(DataError):
        encode_instructions(rows, chat_format, max_tokens=50, on_invalid="drop", where=_where)


def test_a_pair_is_as_long_as_its_longer_completion(chat_format: ChatFormat) -> None:
    pair = Preference(id="p", line=1, prompt=_prompt("a"), chosen="b", rejected="cd")
    encoded = encode_preferences([pair], chat_format, max_tokens=PROMPT_TOKENS + 3, on_invalid="error", where=_where)
    (row,) = encoded.rows
    assert (len(row.chosen_token_ids), len(row.rejected_token_ids)) == (2, 3)
    with pytest.raises(DataError, match="longer completion"):
        encode_preferences([pair], chat_format, max_tokens=PROMPT_TOKENS + 2, on_invalid="error", where=_where)


def test_two_texts_of_the_same_tokens_are_no_pair(make_tokenizer: Any) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    pairs = [
        Preference(id="same", prompt=_prompt("a"), chosen="\u00e9", rejected="e\u0301"),
        Preference(id="other", prompt=_prompt("a"), chosen="b", rejected="c"),
    ]
    encoded = encode_preferences(pairs, ChatFormat(tokenizer), max_tokens=99, on_invalid="drop", where=_where)
    assert [(drop.id, drop.drop_reason) for drop in encoded.drops] == [("same", "identical")]


def test_prompts_have_a_limit_of_their_own(chat_format: ChatFormat) -> None:
    prompts = [Prompt(id=str(n), line=n, prompt=_prompt("a" * n)) for n in (1, 2)]
    encoded = encode_prompts(prompts, chat_format, max_prompt_tokens=PROMPT_TOKENS, on_invalid="drop", where=_where)
    assert [row.id for row in encoded.rows] == ["1"]
    assert encoded.drops[0].detail.startswith("prompt: ")
