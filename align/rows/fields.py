"""Reads single fields of a record from a row. Problems go to a list; a usable value raises no exception, which would be slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from align.rows.comparison import number_of
from align.rows.conversation import (
    PlainMessage,
    checked_prompt,
    extra_keys,
    is_transcript,
    messages_of,
    parse_transcript,
    split_completion,
    text_problem,
)
from align.rows.problem import FieldProblem, noted, shown
from align.rows.tools import tools_of

Row = Mapping[str, Any]
Columns = Mapping[str, str]
"""align's field → the column of the row that holds it."""
Problems = list[FieldProblem]
Fields = dict[str, Any]
"""The fields of a record in its own order, without id, line and file."""
NO_CALLS = "is a tool call; only the completion of an instruction may be one. Write what it says as text, or leave the row out"
REMARKS = TRANSCRIPT, EMPTY_INPUT, LATER_TURNS, FINAL_ANSWER, WEIGHT_ZERO = (
    "rows are Human/Assistant transcripts; they were split into messages",
    "rows have an empty input: the instruction alone is their prompt",
    "prompts have further turns, left out: they cannot follow without an answer",
    "conversations end with an answer, which is no part of the prompt",
    "conversations were cut behind their last message of weight 1: no loss is taken on what follows",
)
"""What the user should know about how rows were read, in the order of the notes."""


def required(field: str, row: Row, columns: Columns) -> Any:
    """The value of a field.

    Raises:
        FieldProblem: missing_field, if it is absent or null.
    """
    column = columns.get(field, field)
    value = row.get(column)
    if value is None:
        if column in row:
            raise FieldProblem(field, "missing_field", "is null")
        named = f"is missing (column {column!r})" if column != field else "is missing"
        raise FieldProblem(field, "missing_field", f"{named}; the row has: {', '.join(map(str, row)) or 'nothing'}")
    return value


class FieldTaker:
    """Reads fields, and counts what the user should know about their reading.

    Args:
        max_characters: a longer text is a problem, in Unicode code points.
    """

    def __init__(self, max_characters: int) -> None:
        self._max = max_characters
        self.extra_message_keys: set[str] = set()
        """`field.key` of keys in messages that are neither role nor content."""
        self.remarks = Counter(dict.fromkeys(REMARKS, 0))
        """Number of rows by the sentence that says what was done with them."""

    def text(self, field: str, value: Any, empty_reason: str, problems: Problems) -> Any:
        """`value`, after checking that it is a usable text."""
        if problem := text_problem(field, value, empty_reason, self._max):
            problems.append(problem)
        return value

    def required_text(self, field: str, row: Row, columns: Columns, empty_reason: str, problems: Problems) -> Any:
        """The text in a required field."""
        value = row.get(columns.get(field, field))
        if value is None:
            return noted(problems, required, field, row, columns)
        return self.text(field, value, empty_reason, problems)

    def reference(self, value: Any, problems: Problems) -> Any:
        """A reference; None for an empty one."""
        # CSV has no null: an empty cell is no reference.
        return None if value is None or value == "" else self.text("reference", value, "empty_reference", problems)

    def score(self, field: str, row: Row, columns: Columns, problems: Problems) -> float | None:
        """A finite number; None where the row has no score."""
        value = row.get(columns[field]) if field in columns else None
        # CSV has no null: an empty cell is no score.
        return None if value is None or value == "" else noted(problems, number_of, field, value)

    def messages(self, field: str, value: Any, *, weights: bool = False) -> list[PlainMessage]:
        """A list of messages, or a transcript; keys that are not read are recorded.

        Raises:
            FieldProblem: see `messages_of`.
        """
        if is_transcript(value):
            self.remarks[TRANSCRIPT] += 1
            return parse_transcript(value)
        messages = messages_of(field, value, weights=weights)
        for key in extra_keys(value, weights=weights):
            self.extra_message_keys.add(f"{field}.{key}")
        return messages

    def prompt(
        self, row: Row, columns: Columns, problems: Problems, *, weights: bool = False
    ) -> tuple[list[PlainMessage] | None, bool]:
        """The prompt in any of its forms, and whether it is a transcript that ends with `Assistant:`.

        Args:
            weights: whether to read the `weight` of messages.
        """
        messages: list[PlainMessage] | None
        if "instruction" in columns:
            messages, is_open = self._instruction(row, columns, problems), False
        else:
            value: Any = row.get(columns.get("prompt", "prompt"))
            # Most prompts are a single text; they skip the slower path.
            if type(value) is str and not is_transcript(value) and not text_problem("prompt", value, "empty_prompt", self._max):
                messages, is_open = [{"role": "user", "content": value}], False
            else:
                messages, is_open = noted(problems, self._other_prompt, row, columns, weights) or (None, False)
        if "system" in columns and messages is not None:
            self._put_system(messages, row.get(columns["system"]), problems)
        if "tools" in columns and messages is not None:
            self.put_tools(messages, row, columns, problems)
        return messages, is_open

    def _other_prompt(self, row: Row, columns: Columns, weights: bool) -> tuple[list[PlainMessage], bool]:
        """A prompt that is a list of messages, a transcript, or unusable: then a FieldProblem is raised."""
        value = required("prompt", row, columns)
        if not is_transcript(value):
            messages = (
                [{"role": "user", "content": value}]
                if isinstance(value, str)
                else self.messages("prompt", value, weights=weights)
            )
            return checked_prompt("prompt", messages, max_characters=self._max), False
        self.remarks[TRANSCRIPT] += 1
        messages = parse_transcript(value)
        # A trailing `Assistant:` opens the completion; it is no message.
        if messages[-1] in ({"role": "assistant", "content": ""}, {"role": "assistant", "content": " "}):
            messages.pop()
        return checked_prompt("prompt", messages, max_characters=self._max), value.endswith("\n\nAssistant:")

    def _instruction(self, row: Row, columns: Columns, problems: Problems) -> list[PlainMessage] | None:
        """An instruction as one user message; its input, if any, follows after an empty line."""
        text = self.required_text("instruction", row, columns, "empty_prompt", problems)
        context = row.get(columns["input"]) if "input" in columns else None
        if text is None:
            return None
        if context is None:
            return [{"role": "user", "content": text}]
        if not isinstance(context, str):
            problems.append(
                FieldProblem("input", "wrong_type", f"must be text, but is {shown(context)} ({type(context).__name__})")
            )
            return None
        # Alpaca's files have an empty input in rows without one.
        if not context or context.isspace():
            self.remarks[EMPTY_INPUT] += 1
            return [{"role": "user", "content": text}]
        self.text("input", context, "empty_prompt", problems)
        # Both together may be too long though each is short enough.
        self.text("prompt", f"{text}\n\n{context}", "empty_prompt", problems)
        return [{"role": "user", "content": f"{text}\n\n{context}"}]

    def _put_system(self, messages: list[PlainMessage], value: Any, problems: Problems) -> None:
        """Put a system message in front of the prompt, unless the message is empty."""
        if value is None or value == "":
            return
        if messages[0]["role"] == "system":
            problems.append(FieldProblem("system", "bad_roles", "the prompt begins with a system message already; leave one out"))
        messages.insert(0, {"role": "system", "content": self.text("system", value, "empty_prompt", problems)})

    def put_tools(self, messages: list[PlainMessage], row: Row, columns: Columns, problems: Problems) -> None:
        """Put the row's tools, if it has any, at its first message."""
        value = row.get(columns["tools"]) if "tools" in columns else None
        # CSV has no null: an empty cell is no list.
        tools = noted(problems, tools_of, "tools", value) if value not in (None, "", []) else None
        if tools and messages and "tools" in messages[0]:
            problems.append(FieldProblem("tools", "bad_tools", "the first message has tools already; leave one of the lists out"))
        elif tools and messages:
            messages[0] = {**messages[0], "tools": tools}

    def checked(self, field: str, messages: list[PlainMessage], problems: Problems) -> list[PlainMessage]:
        """`messages`, after checking that a completion can follow them."""
        noted(problems, checked_prompt, field, messages, max_characters=self._max)
        return messages

    def completion(
        self, field: str, row: Row, columns: Columns, prompt: tuple[list[PlainMessage] | None, bool], problems: Problems
    ) -> Any:
        """The text of the completion in a required field."""
        value = row.get(columns.get(field, field))
        if value is None:
            return noted(problems, required, field, row, columns)
        return self.completion_of(field, value, prompt, problems)

    def answer(self, row: Row, columns: Columns, prompt: tuple[list[PlainMessage] | None, bool], problems: Problems) -> Fields:
        """`completion`, and `tool_calls` where it has any."""
        value = row.get(columns.get("completion", "completion"))
        if type(value) is not list:
            return {"completion": self.completion("completion", row, columns, prompt, problems)}
        message = self._last_of("completion", value, prompt, problems)
        return {} if message is None else self.answer_of("completion", message, problems)

    def answer_of(self, field: str, message: PlainMessage, problems: Problems) -> Fields:
        """`completion`, and `tool_calls` where it has any, of an assistant's message."""
        text, calls = message["content"], message.get("tool_calls")
        if calls is None:
            return {"completion": self.text(field, text, "empty_completion", problems)}
        # The content beside calls may be empty; any other must be a usable text.
        if text:
            self.text(field, text, "empty_completion", problems)
        self.text(field, str(calls), "empty_completion", problems)
        return {"completion": text, "tool_calls": calls}

    def no_calls(self, field: str, message: PlainMessage, problems: Problems) -> Any:
        """The text of an assistant's message, after checking that it is a usable one without tool calls."""
        if "tool_calls" in message:
            problems.append(FieldProblem(field, "bad_tools", NO_CALLS))
            return None
        return self.text(field, message["content"], "empty_completion", problems)

    def completion_of(self, field: str, value: Any, prompt: tuple[list[PlainMessage] | None, bool], problems: Problems) -> Any:
        """The text of a completion: a text, or messages that end with it."""
        if type(value) is not list:
            if prompt[1] and type(value) is str:
                value = value.removeprefix(" ")  # the space after the prompt's last colon belongs to the format
            return self.text(field, value, "empty_completion", problems)
        message = self._last_of(field, value, prompt, problems)
        return None if message is None else self.no_calls(field, message, problems)

    def _last_of(
        self, field: str, value: Any, prompt: tuple[list[PlainMessage] | None, bool], problems: Problems
    ) -> PlainMessage | None:
        """The last of messages that end with the completion, and otherwise repeat the prompt or hold nothing else."""
        messages = prompt[0]
        parts = noted(problems, lambda: split_completion(field, self.messages(field, value)))
        if parts is None:
            return None
        before, message = parts
        # None is a prompt with problems of its own, which are enough.
        if before and messages is not None and _without_tools(before) != _without_tools(messages):
            problems.append(FieldProblem(field, "prompt_differs", "the messages before its last are not the prompt"))
        return message


def _without_tools(messages: list[PlainMessage]) -> list[PlainMessage]:
    """The messages without the row's tools, which only the prompt has."""
    return [{name: value for name, value in message.items() if name != "tools"} for message in messages]
