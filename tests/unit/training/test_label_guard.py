"""The loss is taken on exactly the completion and its end, or nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from align.data.template import ChatFormat
from align.errors import StageError
from align.records import Message
from align.training.label_guard import check_label_spans, spans_of

HELLO = [Message(role="user", content="Hello, 세상")]


@pytest.fixture
def chat_format(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer, where="models/tiny")


def test_spans_are_the_runs_that_are_not_ignored() -> None:
    assert spans_of([-100, 1, 2, -100, -100, 3]) == [[1, 2], [3]]
    assert spans_of([-100, -100]) == []
    assert spans_of([]) == []


def test_labels_that_are_right(chat_format: ChatFormat) -> None:
    first, second = (chat_format.encode_completion(HELLO, text) for text in ("하나", "two"))
    texts = ["하나<|im_end|>", "two<|im_end|>", "two<|im_end|>"]
    check_label_spans([[-100, *first, -100, *second], [-100, *second]], texts, chat_format)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ids: ids[:-1],  # the end of sequence is masked
        lambda ids: ids[1:],  # shifted by one
        lambda ids: [7, *ids],  # one token of the prompt
        lambda ids: [*ids[:2], -100, *ids[3:]],  # a hole
        lambda ids: [-100] * len(ids),  # nothing at all
    ],
)
def test_labels_that_are_wrong(chat_format: ChatFormat, spoil: Callable[[list[int]], list[int]]) -> None:
    ids = chat_format.encode_completion(HELLO, "Hello")
    with pytest.raises(StageError):
        check_label_spans([[-100, *spoil(ids)]], ["Hello<|im_end|>"], chat_format)


def test_both_texts_are_shown(chat_format: ChatFormat) -> None:
    with pytest.raises(StageError) as caught:
        check_label_spans([chat_format.encode_completion(HELLO, "other")], ["Hello<|im_end|>"], chat_format)
    assert "'Hello<|im_end|>'" in str(caught.value)
    assert "'other<|im_end|>'" in str(caught.value)
