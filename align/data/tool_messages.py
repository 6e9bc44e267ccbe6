"""Conversations with tools: what a chat template is given, and whether it shows all of it.

transformers' convention: templates get `tools`, a list of JSON schemas, and `tool_calls` whose arguments are an object. Templates
differ in two points, so up to three forms are tried, in the order of `FORMS`; the first that shows everything is the row's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from align.data.template_problems import TemplateProblem
from align.records import Message

Apply = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]
"""Messages and tools, as the template reads them, to text; raises TemplateProblem."""

ID_CHARACTERS = 9
_SHORT_ID = re.compile(rf"[A-Za-z0-9]{{{ID_CHARACTERS}}}")
ADVICE = "; take a model whose template shows tools, give it one by `chat: {template: FILE}`, or leave the tools out of the rows"


class Form(NamedTuple):
    """How tool calls are written for a template."""

    short_ids: bool = False
    """Each call has an id of nine letters and digits, as Mistral's templates require: the row's own id where it is one, or else
    the beginning of its hash."""
    as_text: bool = False
    """Arguments are JSON text, and a content that is empty beside calls is null, as DeepSeek's templates require."""


FORMS = (Form(), Form(short_ids=True), Form(as_text=True))


def render_with_tools(messages: Sequence[Message], tools: list[dict[str, Any]], apply: Apply) -> str:
    """The text of a conversation with tools, tool calls or results.

    Raises:
        TemplateProblem: tools_not_shown, if the template leaves a part of them out; template_error, if it refuses every form.
    """
    problems = []
    for form in FORMS:
        try:
            text = apply(list(_conversation(messages, form)), tools)
        except TemplateProblem as problem:
            problems.append(TemplateProblem(problem.reason, f"{problem} (the row has tools, which not every template shows)"))
            continue
        if not (missing := not_shown(text, messages, tools)):
            return text
        left_out = ", ".join(map(repr, missing[:3])) + (" …" if len(missing) > 3 else "")
        problems.append(TemplateProblem("tools_not_shown", f"the chat template leaves out {left_out} of the row's tools{ADVICE}"))
    # Without ids to complain about, the second form's error is the template's reason.
    raise next((problem for problem in problems if problem.reason == "tools_not_shown"), problems[1])


def not_shown(text: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[str]:
    """What `text` leaves out: of tools the names, descriptions and parameters; of calls the names and arguments; and results.

    A part counts as shown as it is or as JSON or Python write it; white space does not count. Parts that are there twice must be
    shown twice.
    """
    shown = _squeezed(text)
    needed = Counter([*_parts_of_tools(tools), *_parts_of_messages(messages)])
    return [part for part, times in needed.items() if max(map(shown.count, _spellings(part))) < times]


def up_to_end(tail: str, ends: Collection[str], after: str) -> str:
    """The tool calls in `tail`, up to the token that ends them, which may be another than that of a text.

    Args:
        ends: tokens at which the model stops.
        after: what the template writes behind the end of a text.
    Raises:
        TemplateProblem: template_rewrites, if the template ends calls in another way.
    """
    end = max(tail.rfind(token) + len(token) if token in tail else 0 for token in ends)
    if not end or tail[end:].strip() not in ("", after.strip()):
        raise TemplateProblem(
            "template_rewrites",
            f"the chat template ends tool calls with {tail[-30:]!r}, but the model stops at {', '.join(sorted(ends))}; "
            "add the token to eos_token_id in its generation_config.json",
        )
    return tail[:end]


def _conversation(messages: Sequence[Message], form: Form) -> Iterator[dict[str, Any]]:
    waiting: list[str] = []
    for place, message in enumerate(messages):
        # A key with an empty value is left out: templates ask whether a message has it.
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            calls = [call.model_dump() for call in message.tool_calls]
            if form.short_ids:
                for number, call in enumerate(calls):
                    call["id"] = _short_id(call.get("id") or f"{place}/{number}")
                waiting = [call["id"] for call in calls]
            if form.as_text:
                plain["content"] = message.content or None
                for call in calls:
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            plain["tool_calls"] = calls
        if message.role == "tool":
            # Results stand in the order of their calls.
            call_id = waiting.pop(0) if waiting else message.tool_call_id
            plain |= {key: value for key, value in (("tool_call_id", call_id), ("name", message.name)) if value is not None}
        yield plain


def _short_id(text: str) -> str:
    return text if _SHORT_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:ID_CHARACTERS]


def _parts_of_tools(value: Any, *, of_properties: bool = False) -> Iterator[str]:
    """Names, descriptions and the names of parameters, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if of_properties:
                yield key
            elif key in ("name", "description") and isinstance(inner, str):
                yield inner
            yield from _parts_of_tools(inner, of_properties=key == "properties" and not of_properties)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _parts_of_tools(inner)


def _parts_of_messages(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        for call in message.tool_calls:
            yield call.function.name
            yield from _leaves(call.function.arguments)
        if message.role == "tool" or message.tool_calls:
            yield message.content


def _leaves(value: Any) -> Iterator[str]:
    """Keys and values of a JSON value, as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _spellings(part: str) -> set[str]:
    """A text as templates write it: itself, in JSON, in JSON inside JSON, in Python; without white space."""
    once = json.dumps(part, ensure_ascii=False)[1:-1]
    constant = {"true": "True", "false": "False", "null": "None"}.get(part, part)
    return set(map(_squeezed, (part, once, json.dumps(once, ensure_ascii=False)[1:-1], repr(part)[1:-1], constant)))


def _squeezed(text: str) -> str:
    return "".join(text.split())
