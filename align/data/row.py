"""From one row of a user's file to one record, or to everything that is wrong with the row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from align.data.conversation import (
    MESSAGE_KEYS,
    FieldError,
    check_encodable,
    checked_prompt,
    is_transcript,
    messages_of,
    parse_transcript,
    prompt_of,
    shown,
    split_completion,
    text_of,
)
from align.records import Message

FIELDS: Mapping[str, tuple[str, ...]] = {
    "instructions": ("id", "prompt", "completion", "messages"),
    "preferences": ("id", "prompt", "chosen", "rejected", "chosen_score", "rejected_score"),
    "prompts": ("id", "prompt", "reference"),
    "text": ("id", "text"),
}
"""Fields a row of each kind may have. `messages` stands for prompt and completion in one."""

OWN_COLUMNS = frozenset({"line"})
"""Columns that `align` itself writes and that say nothing here."""

T = TypeVar("T")


class RowReader:
    """Takes the fields of a record out of one row and collects what is wrong.

    Args:
        row: the row as the file has it.
        columns: field of ours → column of the file, where they differ.
        max_characters: a longer text is a fault.
    """

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str], max_characters: int) -> None:
        self._row = row
        self._columns = columns
        self._max = max_characters
        self.faults: list[FieldError] = []
        self.used: set[str] = set()
        self.extra_message_keys: set[str] = set()
        self.from_transcripts = False

    def record(self, kind: str) -> dict[str, Any] | None:
        """The fields of a record of `kind`, without id and line; None when `faults` says why not."""
        build: Callable[[], dict[str, Any]] = {
            "instructions": self._instruction,
            "preferences": self._preference,
            "prompts": self._prompt,
            "text": self._text,
        }[kind]
        fields = build()
        return None if self.faults else fields

    def explicit_id(self) -> str | None:
        """The row's own id; whole numbers are accepted, an empty one is none."""
        value = self._value("id")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self.faults.append(FieldError("id", "wrong_type", f"must be text or a whole number, but is {shown(value)}"))
            return None
        return self._try(lambda: _encodable("id", value))

    def _value(self, field: str) -> Any:
        """The value of a field, or None."""
        column = self._columns.get(field, field)
        if column in self._row:
            self.used.add(column)
        return self._row.get(column)

    def _required(self, field: str) -> Any:
        value = self._value(field)
        if value is None:
            column = self._columns.get(field, field)
            if column in self._row:
                raise FieldError(field, "missing_field", "is null")
            named = f"is missing (column {column!r})" if column != field else "is missing"
            raise FieldError(field, "missing_field", f"{named}; the row has: {', '.join(map(str, self._row)) or 'nothing'}")
        return value

    def _try(self, parse: Callable[[], T]) -> T | None:
        try:
            return parse()
        except FieldError as fault:
            self.faults.append(fault)
            return None

    def _messages(self, field: str, value: Any) -> list[Message]:
        messages = messages_of(field, value)
        self.extra_message_keys.update(f"{field}.{key}" for item in value for key in item if key not in MESSAGE_KEYS)
        return messages

    def _completion(self, field: str, value: Any) -> str:
        return text_of(field, value, empty_reason="empty_completion", max_characters=self._max)

    def _required_prompt(self) -> list[Message]:
        value = self._required("prompt")
        if not isinstance(value, str):
            self._messages("prompt", value)
        return prompt_of("prompt", value, max_characters=self._max)

    def _text(self) -> dict[str, Any]:
        text = self._try(lambda: text_of("text", self._required("text"), empty_reason="empty_text", max_characters=self._max))
        return {"text": text}

    def _prompt(self) -> dict[str, Any]:
        prompt = self._try(self._required_prompt)
        reference = self._value("reference")
        if reference is None or reference == "":
            return {"prompt": prompt, "reference": None}
        parse = lambda: text_of("reference", reference, empty_reason="empty_reference", max_characters=self._max)  # noqa: E731
        return {"prompt": prompt, "reference": self._try(parse)}

    def _instruction(self) -> dict[str, Any]:
        if self._value("prompt") is None and self._value("messages") is not None:
            return self._instruction_of_messages()
        prompt = self._try(self._required_prompt)
        completion = self._try(lambda: self._completion_after("completion", self._required("completion"), prompt))
        return {"prompt": prompt, "completion": completion}

    def _instruction_of_messages(self) -> dict[str, Any]:
        parts = self._try(lambda: split_completion("messages", self._messages("messages", self._value("messages"))))
        if parts is None:
            return {}
        prompt = self._try(lambda: checked_prompt("messages", parts[0], max_characters=self._max))
        completion = self._try(lambda: self._completion("messages", parts[1]))
        return {"prompt": prompt, "completion": completion}

    def _completion_after(self, field: str, value: Any, prompt: list[Message] | None) -> str:
        """A completion given as text, or as messages of which those before the last repeat the prompt or are left out."""
        if not isinstance(value, list):
            return self._completion(field, value)
        before, text = split_completion(field, self._messages(field, value))
        if before and prompt is not None and before != prompt:
            raise FieldError(field, "prompt_differs", "the messages before its last are not the prompt")
        return self._completion(field, text)

    def _preference(self) -> dict[str, Any]:
        fields = self._pair_with_prompt() if self._value("prompt") is not None else self._pair_with_prompt_inside()
        chosen, rejected = fields.get("chosen"), fields.get("rejected")
        if chosen is not None and chosen == rejected:
            self.faults.append(FieldError("chosen", "identical", "equals rejected; the two of a pair must differ"))
        for field in ("chosen_score", "rejected_score"):
            fields[field] = self._try(lambda field=field: _score(field, self._value(field)))  # type: ignore[misc]
        return fields

    def _pair_with_prompt(self) -> dict[str, Any]:
        prompt = self._try(self._required_prompt)
        return {
            "prompt": prompt,
            "chosen": self._try(lambda: self._completion_after("chosen", self._required("chosen"), prompt)),
            "rejected": self._try(lambda: self._completion_after("rejected", self._required("rejected"), prompt)),
        }

    def _pair_with_prompt_inside(self) -> dict[str, Any]:
        """A pair whose prompt is what both conversations begin with."""
        chosen = self._try(lambda: self._whole_conversation("chosen"))
        rejected = self._try(lambda: self._whole_conversation("rejected"))
        if chosen is None or rejected is None:
            return {}
        if chosen[0] != rejected[0]:
            self.faults.append(FieldError("rejected", "prompt_differs", "does not begin with the same messages as chosen"))
        return {
            "prompt": self._try(lambda: checked_prompt("prompt", chosen[0], max_characters=self._max)),
            "chosen": self._try(lambda: self._completion("chosen", chosen[1])),
            "rejected": self._try(lambda: self._completion("rejected", rejected[1])),
        }

    def _whole_conversation(self, field: str) -> tuple[list[Message], str]:
        value = self._required(field)
        if is_transcript(value):
            self.from_transcripts = True
            return split_completion(field, parse_transcript(value))
        if isinstance(value, str):
            self._required("prompt")  # a bare completion: what is missing is the prompt
        return split_completion(field, self._messages(field, value))


def _encodable(field: str, value: str) -> str:
    check_encodable(field, value)
    return value


def _score(field: str, value: Any) -> float | None:
    """A finite number, or None where there is none. CSV has it as text."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise FieldError(field, "wrong_type", f"must be a finite number, but is {shown(value)}") from None
    return number
