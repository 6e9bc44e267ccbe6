"""What can be wrong with a chat template, or with one conversation that it shall show."""

from __future__ import annotations

from typing import Literal

from align.errors import RecipeError

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
