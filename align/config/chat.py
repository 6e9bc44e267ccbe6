"""How a model's conversations are written: what a recipe may say where the model's own files are silent or wrong."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import field_validator

from align.config.base import StrictModel

PINNED_DATE = "2025-01-01"
"""The day for templates that print the date: with the real one, the same recipe would train on other tokens tomorrow."""


class ChatSettings(StrictModel):
    """Settings of a model's chat format."""

    template: str | None = None
    """Chat template in place of the model's: a file, relative to the recipe, or one of align's own, `chatml`, `gemma`, `llama3`,
    `plain` or `tulu`."""
    add_tokens: list[str] | None = None
    """Control tokens of the template. Those that the vocabulary lacks are added to a copy of the model, with rows in its
    embeddings and head; null: those of align's own template."""
    template_kwargs: dict[str, bool | int | float | str | None] = {}
    """Variables of the chat template, such as `enable_thinking: false`."""
    date: str | None = None
    """The day (YYYY-MM-DD) that the chat template prints if it prints today's date, also in what is saved; null: 2025-01-01 here,
    and what is saved prints the day on which it is used."""
    end_of_turn: str | None = None
    """Token that ends a completion; null: the one that the template writes, or else the end-of-sequence token."""
    pad_token: str | None = None
    """Padding token; null: the tokenizer's, or a reserved token of its vocabulary."""
    system: Literal["template", "first_user", "drop"] = "template"
    """System messages: as the template shows them, put in front of the first user message (for templates that refuse them), or
    left out."""
    thinking: Literal["refuse", "strip", "keep"] = "refuse"
    """Reasoning in completions, for templates that write thinking blocks: refuse such rows, remove the reasoning, or train on
    it. With `keep`, prompts end where the model begins to think."""

    @field_validator("template_kwargs")
    @classmethod
    def _are_names(cls, value: dict[str, bool | int | float | str | None]) -> dict[str, bool | int | float | str | None]:
        if wrong := [name for name in value if not name.isidentifier()]:
            raise ValueError(f"{wrong[0]!r} cannot be the name of a variable")
        return value

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, value: str | None) -> str | None:
        try:
            datetime.date.fromisoformat(value or PINNED_DATE)
        except ValueError as error:
            raise ValueError(f"expected a day such as 2026-11-26, got {value!r}") from error
        return value
