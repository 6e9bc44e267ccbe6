"""Conversations: text that comes whole, turns that are remembered, and what is dropped when there is no room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.config.chat import ChatSettings
from align.data.template import ChatFormat
from align.engines.chat import Conversation, TextStream
from align.errors import DataError
from align.models.folder import ModelFolder
from align.records import Message
from align.testing import CHAT_TEMPLATE, tiny_causal_lm

KOREAN = "우산을 잃어버렸구나. 😀 I see, 속상했겠다"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It sees 128 tokens."""
    return tiny_causal_lm(tmp_path_factory.mktemp("model") / "m", seed=3, max_position_embeddings=128)


def conversation(model: Path, **changes: Any) -> Conversation:
    options: dict[str, Any] = {"system": None, "temperature": 1.0, "max_completion_tokens": 12, "seed": 1, **changes}
    return Conversation(ModelFolder(model), **options)


def say(talk: Conversation, text: str) -> str:
    return "".join(talk.ask(text)[1])


def test_no_character_is_shown_before_it_is_whole(model: Path) -> None:
    """The tokenizer knows bytes alone: a syllable is three tokens, an emoji four."""
    chat_format = ChatFormat(ModelFolder(model).tokenizer)
    (ids,) = chat_format.tokenize([KOREAN])
    assert len(ids) == len(KOREAN.encode())
    stream = TextStream(chat_format)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == KOREAN
    assert [piece for piece in pieces if piece] == list(KOREAN)
    assert stream.finish() == ""


def test_a_character_that_never_became_whole_is_shown_as_such(model: Path) -> None:
    chat_format = ChatFormat(ModelFolder(model).tokenizer)
    (ids,) = chat_format.tokenize(["가나"])
    stream = TextStream(chat_format)
    assert "".join(stream.add(token) for token in ids[:-1]) == "가"
    assert stream.finish() == "\ufffd"


def test_the_same_seed_gives_the_same_answers_and_they_are_remembered(model: Path) -> None:
    first, second = conversation(model), conversation(model)
    answers = [say(first, text) for text in ("안녕", "again")]
    assert [say(second, text) for text in ("안녕", "again")] == answers
    assert [(question.content, answer.content) for question, answer in first.turns] == list(
        zip(("안녕", "again"), answers, strict=True)
    )
    assert [say(conversation(model, seed=2), "안녕")] != answers[:1]


class Scripted:
    """In place of an engine: it draws the tokens that it was given."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids

    def stream(self, *_: Any) -> Iterator[int]:
        yield from self.token_ids


def scripted(model: Path, settings: ChatSettings, template: str, answer: str) -> Conversation:
    """A conversation in which the model's tokens are those of `answer`."""
    folder = ModelFolder(model, settings)
    folder.tokenizer.chat_template = template
    talk = Conversation(folder, system=None, temperature=1.0, max_completion_tokens=12, seed=1)
    talk._engine = Scripted(talk._format.tokenize([answer])[0])  # type: ignore[assignment]
    return talk


SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
)


def test_white_space_around_an_answer_is_the_template_s(model: Path) -> None:
    talk = scripted(model, ChatSettings(), SPACED, " Yes. <|im_end|>")
    assert say(talk, "Q").rstrip() == "Yes."
    assert talk._format.prompt_text([*talk.turns[0], Message(role="user", content="R")]) == (
        "[INST] Q [/INST] Yes. <|im_end|>[INST] R [/INST]"
    )


def test_a_token_that_ends_an_answer_is_not_shown_whatever_it_is(model: Path) -> None:
    """Here it is an ordinary token, which decoding does not leave out."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}#{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    talk = scripted(model, ChatSettings(end_of_turn="#"), template, "Yes.#")
    assert say(talk, "Q") == talk.turns[0][1].content == "Yes."


@pytest.mark.parametrize(("thinking", "kept"), [("strip", "Yes."), ("refuse", "<think>Hm.</think>\n\nYes.")])
def test_reasoning_stays_in_later_prompts_as_the_settings_say(model: Path, thinking: Any, kept: str) -> None:
    talk = scripted(model, ChatSettings(thinking=thinking), CHAT_TEMPLATE, "<think>Hm.</think>\n\nYes.<|im_end|>")
    assert say(talk, "Q") == "<think>Hm.</think>\n\nYes."
    assert talk.turns[0][1].content == kept


def test_what_was_said_before_changes_the_answer(model: Path) -> None:
    greedy = conversation(model, temperature=0.0)
    alone = say(greedy, "hi")
    greedy.reset()
    say(greedy, "abc")
    after = say(greedy, "hi")
    greedy.reset()
    assert say(greedy, "hi") == alone
    assert after != alone


def test_the_oldest_turns_go_first_and_the_system_message_stays(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = conversation(model, system="be kind")
    shown: list[list[str]] = []
    encode = talk._format.encode_prompt

    def remember(messages: list[Message]) -> list[int]:
        shown.append([message.content for message in messages])
        return encode(messages)

    monkeypatch.setattr(talk._format, "encode_prompt", remember)
    dropped = []
    for index in range(6):
        count, answer = talk.ask(f"message {index}")
        dropped.append(count)
        assert "".join(answer)
        assert shown[-1][0] == "be kind"
        assert shown[-1][-1] == f"message {index}"
    assert sum(dropped) >= 2
    assert talk.turns[0][0].content == f"message {sum(dropped)}"


def test_a_message_that_cannot_fit_is_an_error_and_costs_no_turn(model: Path) -> None:
    talk = conversation(model)
    say(talk, "hello")
    with pytest.raises(DataError, match="the message has .* tokens with its template; the model sees 128, of which 116"):
        talk.ask("x" * 200)
    assert len(talk.turns) == 1


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_went(model: Path) -> None:
    talk = conversation(model)
    _, answer = talk.ask("hello")
    with contextlib.closing(answer):
        said = next(answer)
    ((_, kept),) = talk.turns
    assert kept.content == said
