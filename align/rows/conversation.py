"""Conversations as users write them: a string, a list of messages, or a Human/Assistant transcript.

A message is a plain dict of role and content, as in `rows.jsonl`: a pydantic object for each of millions of messages is too slow.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from align.records import Message
from align.rows.problem import FieldProblem, encoding_problem, shown
from align.rows.text import is_blank

ROLES: tuple[str, ...] = get_args(Message.model_fields["role"].annotation)
MESSAGE_KEYS = frozenset({"role", "content"})
SHAREGPT_KEYS = frozenset({"from", "value"})
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")

PlainMessage = dict[str, str]
"""role and content."""

# A blank line and the speaker's name start a turn, so blank lines inside a turn do not cut it.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


def text_problem(field: str, value: Any, empty_reason: str, max_characters: int) -> FieldProblem | None:
    """What keeps `value` from being a usable text; returned and not raised, which would be too slow for every text.

    That is wrong_type, too_long, lone_surrogate, or `empty_reason` for a text without visible characters.
    """
    if not isinstance(value, str):
        return FieldProblem(field, "wrong_type", f"must be text, but is {shown(value)} ({type(value).__name__})")
    if is_blank(value):
        return FieldProblem(field, empty_reason, "is empty" if not value else f"has nothing visible in it: {shown(value)}")
    if len(value) > max_characters:
        return FieldProblem(field, "too_long", f"has {len(value):,} characters; max_characters is {max_characters:,}")
    return None if value.isascii() else encoding_problem(field, value)


def messages_of(field: str, value: Any) -> list[PlainMessage]:
    """Messages of a list of {role, content} or ShareGPT's {from, value}; roles are checked, their order is not.

    Raises:
        FieldProblem: wrong_type for another shape, bad_roles for an unknown role.
    """
    if not isinstance(value, list) or not value:
        raise FieldProblem(field, "wrong_type", f"must be text or a list of messages, but is {shown(value)}")
    messages = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise _not_a_message(field, number, item)
        # The usual form first; only other messages take the slower path.
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            role, content = _other_message(field, number, item)
        if type(content) is not str:
            raise FieldProblem(field, "wrong_type", f"the content of message {number} must be text, but is {shown(content)}")
        messages.append({"role": role, "content": content})
    return messages


def _other_message(field: str, number: int, item: dict[str, Any]) -> tuple[str, Any]:
    """Role and content of a ShareGPT message; a FieldProblem for any other."""
    if item.get("role") is None and item.get("from") is not None and "value" in item:
        role, known = item["from"], tuple(SHAREGPT_ROLES)
        if isinstance(role, str) and role in SHAREGPT_ROLES:
            return SHAREGPT_ROLES[role], item["value"]
    elif item.get("role") is not None and "content" in item:
        role, known = item["role"], ROLES
    else:
        raise _not_a_message(field, number, item)
    advice = "; rows with tools cannot be used: write what they say as text, or leave the row out" if role in TOOL_ROLES else ""
    raise FieldProblem(field, "bad_roles", f"message {number} has the role {shown(role)}; expected {', '.join(known)}{advice}")


def _not_a_message(field: str, number: int, item: Any) -> FieldProblem:
    return FieldProblem(
        field, "wrong_type", f"message {number} must be {{role, content}} or {{from, value}}, but is {shown(item)}"
    )


def extra_keys(value: list[dict[str, Any]]) -> set[str]:
    """Keys that have a value but are neither role nor content, in messages that `messages_of` accepted."""
    extra: set[str] = set()
    for item in value:
        if len(item) > len(MESSAGE_KEYS):
            used = MESSAGE_KEYS if item.get("role") is not None else SHAREGPT_KEYS
            extra.update(str(key) for key, one in item.items() if key not in used and one is not None)
    return extra


def checked_prompt(field: str, messages: list[PlainMessage], *, max_characters: int) -> list[PlainMessage]:
    """`messages` themselves, if a completion can follow them: [system] user (assistant user)*.

    Raises:
        FieldProblem: empty_prompt, too_long (one, or all together), lone_surrogate or bad_roles.
    """
    if not messages:
        raise FieldProblem(field, "empty_prompt", "there is nothing before the completion")
    characters = 0
    for number, message in enumerate(messages, start=1):
        content = message["content"]
        characters += len(content)
        if problem := text_problem(field, content, "empty_prompt", max_characters):
            problem.field = field if len(messages) == 1 else f"{field} message {number}"
            raise problem
    if characters > max_characters:
        raise FieldProblem(
            field, "too_long", f"the messages together have more characters than max_characters, {max_characters:,}"
        )
    roles = [message["role"] for message in messages]
    if roles[-1] != "user":
        raise FieldProblem(field, "bad_roles", f"must end with a user message, but ends with the {roles[-1]}'s")
    for number in range(1, len(roles)):
        if roles[number] == "system":
            raise FieldProblem(field, "bad_roles", f"message {number + 1} is a system message; only the first may be one")
        if roles[number] == roles[number - 1]:
            raise FieldProblem(field, "bad_roles", f"messages {number} and {number + 1} are both the {roles[number]}'s")
    return messages


def split_completion(field: str, messages: list[PlainMessage]) -> tuple[list[PlainMessage], str]:
    """The messages before the last, and the text of the last, which must be the assistant's.

    Raises:
        FieldProblem: bad_roles.
    """
    if not messages or messages[-1]["role"] != "assistant":
        end = f"ends with the {messages[-1]['role']}'s" if messages else "there is none"
        raise FieldProblem(field, "bad_roles", f"must end with an assistant message, but {end}")
    return messages[:-1], messages[-1]["content"]


def is_transcript(value: Any) -> bool:
    """Whether `value` is a transcript as in hh-rlhf, "\\n\\nHuman: …\\n\\nAssistant: …"."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def parse_transcript(text: str) -> list[PlainMessage]:
    """Messages of a transcript. One space after each colon belongs to the format; the rest is kept as it is."""
    # split also returns the speakers, since they are a group; before the first turn there is only an empty text.
    pieces = _TURN.split(text)[1:]
    return [
        {"role": _TRANSCRIPT_ROLES[speaker], "content": content.removeprefix(" ")}
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
