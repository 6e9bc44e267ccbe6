"""Rows for the tests of the data report."""

from __future__ import annotations

from typing import Any

from align.records import Instruction, Message, Preference


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def pair(number: int, *, prompt: str = "", chosen: str = "yes", rejected: str = "no", **scores: float) -> Preference:
    """A pair with its number as line and, unless given, as prompt."""
    fields: dict[str, Any] = {"chosen": chosen, "rejected": rejected, **scores}
    return Preference(id=f"p{number}", line=number, prompt=user(prompt or f"Question {number}?"), **fields)


def instruction(number: int, completion: str = "An answer.", prompt: str = "") -> Instruction:
    return Instruction(id=f"i{number}", line=number, prompt=user(prompt or f"Task number {number}"), completion=completion)
