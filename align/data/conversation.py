"""Conversations as users write them: a string, a list of messages, or a Human/Assistant transcript."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from align.records import Message

ROLES: tuple[str, ...] = get_args(Message.model_fields["role"].annotation)
MESSAGE_KEYS = frozenset({"role", "content"})

_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


class FieldError(ValueError):
    """Why a value of a row cannot be used. `reason` is the row's `drop_reason`."""

    def __init__(self, field: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason
        self.message = message


def shown(value: Any) -> str:
    """A value for a message: at most 60 characters, with its type where that is the point."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1]


def text_of(field: str, value: Any, *, empty_reason: str, max_characters: int) -> str:
    """`value` itself, if it is a text that can be used.

    Raises:
        FieldError: wrong_type, lone_surrogate, too_long, or `empty_reason` for nothing but white space.
    """
    if not isinstance(value, str):
        raise FieldError(field, "wrong_type", f"must be text, but is {shown(value)} ({type(value).__name__})")
    if not value.strip():
        raise FieldError(field, empty_reason, "is empty" if not value else f"is only white space: {shown(value)}")
    if len(value) > max_characters:
        raise FieldError(field, "too_long", f"has {len(value):,} characters; max_characters is {max_characters:,}")
    check_encodable(field, value)
    return value


def check_encodable(field: str, value: str) -> None:
    """Refuse half a character: JSON can write one, UTF-8 cannot, and no tokenizer can read it."""
    if value.isascii():
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        where = f"character {error.start + 1} (\\u{ord(value[error.start]):04x})"
        raise FieldError(field, "lone_surrogate", f"{where} is half a surrogate pair, which no UTF-8 text can hold") from None


def messages_of(field: str, value: Any) -> list[Message]:
    """Messages of a list of {role, content}; roles are known, their order is not looked at.

    Raises:
        FieldError: wrong_type for another shape, bad_roles for an unknown role.
    """
    if not isinstance(value, list) or not value:
        raise FieldError(field, "wrong_type", f"must be text or a list of messages, but is {shown(value)}")
    messages = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict) or not item.keys() >= MESSAGE_KEYS:
            told = " (ShareGPT's from/value: rename them)" if isinstance(item, dict) and "from" in item else ""
            raise FieldError(field, "wrong_type", f"message {number} must be {{role, content}}, but is {shown(item)}{told}")
        role, content = item["role"], item["content"]
        if role not in ROLES:
            raise FieldError(field, "bad_roles", f"message {number} has the role {shown(role)}; expected {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise FieldError(field, "wrong_type", f"the content of message {number} must be text, but is {shown(content)}")
        messages.append(Message(role=role, content=content))
    return messages


def prompt_of(field: str, value: Any, *, max_characters: int) -> list[Message]:
    """The prompt that `value` holds: a text is one user message.

    Raises:
        FieldError: what `messages_of` raises, empty_prompt, too_long (all messages together), lone_surrogate, or bad_roles.
    """
    messages = [Message(role="user", content=value)] if isinstance(value, str) else messages_of(field, value)
    return checked_prompt(field, messages, max_characters=max_characters)


def checked_prompt(field: str, messages: list[Message], *, max_characters: int) -> list[Message]:
    """`messages` themselves, if a completion can follow them: [system] user (assistant user)*."""
    roles = [message.role for message in messages]
    if not roles:
        raise FieldError(field, "empty_prompt", "there is nothing before the completion")
    for number, message in enumerate(messages, start=1):
        label = field if len(messages) == 1 else f"{field} message {number}"
        text_of(label, message.content, empty_reason="empty_prompt", max_characters=max_characters)
    if sum(len(message.content) for message in messages) > max_characters:
        raise FieldError(field, "too_long", f"the messages together have more characters than max_characters, {max_characters:,}")
    if roles[-1] != "user":
        raise FieldError(field, "bad_roles", f"must end with a user message, but ends with the {roles[-1]}'s")
    for number in range(1, len(roles)):
        if roles[number] == "system":
            raise FieldError(field, "bad_roles", f"message {number + 1} is a system message; only the first may be one")
        if roles[number] == roles[number - 1]:
            raise FieldError(field, "bad_roles", f"messages {number} and {number + 1} are both the {roles[number]}'s")
    return messages


def split_completion(field: str, messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The messages before the last, and the text of the last, which must be the assistant's.

    Raises:
        FieldError: bad_roles.
    """
    if messages[-1].role != "assistant":
        raise FieldError(field, "bad_roles", f"must end with an assistant message, but ends with the {messages[-1].role}'s")
    return list(messages[:-1]), messages[-1].content


def is_transcript(value: Any) -> bool:
    """Whether `value` is a transcript as in hh-rlhf, "\\n\\nHuman: …\\n\\nAssistant: …"."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def parse_transcript(text: str) -> list[Message]:
    """Messages of a transcript. The one space after each colon is the format's; everything else is kept as it is."""
    pieces = _TURN.split(text)[1:]
    return [
        Message.model_validate({"role": _TRANSCRIPT_ROLES[speaker], "content": content.removeprefix(" ")})
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
