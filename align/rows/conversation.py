"""Conversations as users write them: a string, a list of messages, or a Human/Assistant transcript.

A message is a plain dict, as in `rows.jsonl`: role, content and what it has of tools. A pydantic object for each of millions of
messages is too slow.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from align.records import Message
from align.rows.problem import FieldProblem, encoding_problem, shown
from align.rows.text import is_blank
from align.rows.tools import TOOL_KEYS, match_results, message_fields

ROLES: tuple[str, ...] = get_args(Message.model_fields["role"].annotation)
MESSAGE_KEYS = frozenset({"role", "content"})
WEIGHT = "weight"
"""OpenAI's key of an assistant message: 0 takes no loss on it."""
SHAREGPT_KEYS = frozenset({"from", "value"})
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

OTHER_TOOL_ROLES = ("function_call", "observation", "ipython")
"""Roles of tool calls and results in other forms than OpenAI's."""

PlainMessage = dict[str, Any]
"""The fields of `Message` that have no default, and of the others those with a value."""

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


def messages_of(field: str, value: Any, *, weights: bool = False) -> list[PlainMessage]:
    """Messages of a list of {role, content} or ShareGPT's {from, value}; roles are checked, their order is not.

    Args:
        weights: whether to read `weight`.
    Raises:
        FieldProblem: wrong_type for another shape, bad_roles for an unknown role; see also `message_fields`.
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
        more = message_fields(field, number, item) if len(item) > len(MESSAGE_KEYS) or "content" not in item else {}
        if weights and item.get(WEIGHT) is not None:
            more |= _weight(field, number, item)
        if content is None and "tool_calls" in more:
            content = ""
        if type(content) is not str:
            raise FieldProblem(field, "wrong_type", f"the content of message {number} must be text, but is {shown(content)}")
        messages.append({"role": role, "content": content, **more} if more else {"role": role, "content": content})
    return messages


def _weight(field: str, number: int, item: dict[str, Any]) -> PlainMessage:
    """OpenAI's weight of an assistant message; nothing for the default, 1."""
    weight = item[WEIGHT]
    if weight not in (0, 1) or isinstance(weight, bool):
        raise FieldProblem(field, "wrong_type", f"the weight of message {number} must be 0 or 1, but is {shown(weight)}")
    if item.get("role") != "assistant":
        raise FieldProblem(field, "bad_roles", f"message {number} has a weight, which only the assistant's messages have")
    return {} if weight == 1 else {WEIGHT: 0}


def _other_message(field: str, number: int, item: dict[str, Any]) -> tuple[str, Any]:
    """Role and content of a ShareGPT message; a FieldProblem for any other."""
    if item.get("role") is None and item.get("from") is not None and "value" in item:
        role, known = item["from"], tuple(SHAREGPT_ROLES)
        if isinstance(role, str) and role in SHAREGPT_ROLES:
            return SHAREGPT_ROLES[role], item["value"]
    elif item.get("role") is not None and "content" in item:
        role, known = item["role"], ROLES
        if role == "function":  # OpenAI's older name of the same
            return "tool", item["content"]
    else:
        raise _not_a_message(field, number, item)
    form = "; tool calls and results are read in OpenAI's form: `tool_calls` at the assistant's message, then the role tool"
    advice = form if isinstance(role, str) and role in {*OTHER_TOOL_ROLES, *TOOL_KEYS} - set(known) else ""
    raise FieldProblem(field, "bad_roles", f"message {number} has the role {shown(role)}; expected {', '.join(known)}{advice}")


def _not_a_message(field: str, number: int, item: Any) -> FieldProblem:
    return FieldProblem(
        field, "wrong_type", f"message {number} must be {{role, content}} or {{from, value}}, but is {shown(item)}"
    )


def extra_keys(value: list[dict[str, Any]], *, weights: bool = False) -> set[str]:
    """Keys that have a value and are not read, in messages that `messages_of` accepted."""
    extra: set[str] = set()
    for number, item in enumerate(value):
        if len(item) > len(MESSAGE_KEYS):
            role = item.get("role")
            used = SHAREGPT_KEYS if role is None else MESSAGE_KEYS | TOOL_KEYS.get(role, frozenset())
            used |= {key for key, is_read in ((WEIGHT, weights), ("tools", number == 0)) if is_read}
            extra.update(str(key) for key, one in item.items() if key not in used and one is not None)
    return extra


def checked_prompt(field: str, messages: list[PlainMessage], *, max_characters: int) -> list[PlainMessage]:
    """`messages` themselves, if a completion can follow them: [system] user (assistant (tool+ | user))*.

    Results of parallel calls are put in the order of the calls.

    Raises:
        FieldProblem: empty_prompt, too_long (one, or all together), lone_surrogate, bad_roles or bad_tools.
    """
    if not messages:
        raise FieldProblem(field, "empty_prompt", "there is nothing before the completion")
    characters = 0
    for number, message in enumerate(messages, start=1):
        content = message["content"]
        characters += len(content) if len(message) == len(MESSAGE_KEYS) else len(str(message))
        if (content or "tool_calls" not in message) and (problem := text_problem(field, content, "empty_prompt", max_characters)):
            problem.field = field if len(messages) == 1 else f"{field} message {number}"
            raise problem
    if characters > max_characters:
        raise FieldProblem(
            field, "too_long", f"the messages together have more characters than max_characters, {max_characters:,}"
        )
    roles = [message["role"] for message in messages]
    if roles[-1] not in ("user", "tool"):
        raise FieldProblem(field, "bad_roles", f"must end with a user message, but ends with the {roles[-1]}'s")
    for number in range(1, len(roles)):
        if roles[number] == "system":
            raise FieldProblem(field, "bad_roles", f"message {number + 1} is a system message; only the first may be one")
        if roles[number] == roles[number - 1] != "tool":
            raise FieldProblem(field, "bad_roles", f"messages {number} and {number + 1} are both the {roles[number]}'s")
    if "tool" in roles or any("tool_calls" in message for message in messages):
        match_results(field, messages)
    return messages


def split_completion(field: str, messages: list[PlainMessage]) -> tuple[list[PlainMessage], PlainMessage]:
    """The messages before the last, and the last, which must be the assistant's.

    Raises:
        FieldProblem: bad_roles.
    """
    if not messages or messages[-1]["role"] != "assistant":
        end = f"ends with the {messages[-1]['role']}'s" if messages else "there is none"
        raise FieldProblem(field, "bad_roles", f"must end with an assistant message, but {end}")
    return messages[:-1], messages[-1]


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
