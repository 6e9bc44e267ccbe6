"""What can be wrong with a chat template, or with one conversation that it shall show."""

from __future__ import annotations

import json
from typing import Any, Literal

from align.errors import RecipeError

MAX_TEMPLATE_BYTES = 64 * 1024
RENDER_SECONDS = 10.0
SECONDS_PER_CONVERSATION = 0.02
"""Time limit for rendering: a fixed part, and a part per conversation. An untrusted template could loop for ever."""
RENDER_BYTES = 1 << 30
BYTES_PER_CONVERSATION = 1 << 18
"""Memory that rendering may take beyond what the process has already: a fixed part, and a part per conversation, whose text
stays. Jinja's sandbox limits what a template may call, not how much text it may build."""
MAX_RENDERED_CHARACTERS = 1 << 26
"""Longest text of a conversation."""
Aspect = Literal["template", "end_of_sequence", "padding", "prompt_prefix", "end_of_turn"]


class FormatError(RecipeError):
    """No conversation can be rendered for the model. `aspect` names the cause.

    Every argument but the message has a default: errors cross processes by their message, the other attributes are set later.
    """

    def __init__(self, message: str, *, aspect: Aspect = "template", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.aspect = aspect


class TemplateProblem(ValueError):
    """One conversation cannot be rendered or trained on as it is.

    `reason` is the row's `drop_reason`; `field` is `prompt`, or the completion's name where `texts_of` knows it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = ""


def check_template(template: Any, where: str) -> None:
    """Refuse a missing or huge template; several by name are one.

    Raises:
        FormatError: see there.
    """
    if not template:
        raise FormatError(
            f"{where}: the tokenizer has no chat template",
            hint="Give it one: `chat: {template: chatml}`, which adds its tokens to the vocabulary, "
            "`chat: {template: plain}`, which needs none, or a file; or take an instruction-tuned model.",
        )
    # A tokenizer may hold several templates by name; the limit is on all of them.
    text = template if isinstance(template, str) else json.dumps(template)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise FormatError(
            f"{where}: the chat template is larger than {MAX_TEMPLATE_BYTES // 1024} KiB; no honest one is",
            hint="Look at chat_template.jinja of that model.",
        )


def seconds_for(conversations: int) -> float:
    """Time limit for rendering so many."""
    return RENDER_SECONDS + conversations * SECONDS_PER_CONVERSATION


def bytes_for(conversations: int) -> int:
    """Memory limit for rendering so many."""
    return RENDER_BYTES + conversations * BYTES_PER_CONVERSATION


def too_slow(where: str, conversations: int) -> FormatError:
    """The error when that time is over."""
    what = "a conversation" if conversations == 1 else f"{conversations:,} conversations"
    return FormatError(
        f"{where}: its chat template took more than {seconds_for(conversations):.0f} seconds for {what}",
        hint="Look at chat_template.jinja of that model; it may not end.",
    )
