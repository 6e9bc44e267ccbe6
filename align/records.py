"""The rows that flow between stages; align/rows/table.py says which kind of artifact holds which.

A row file is JSON Lines in UTF-8, one record a line, keys in the order of the fields below. Rows are joined by `id`
(`prompt_id` for candidates), never by position.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from align.strict import Strict

FinishReason = Literal["stop", "length"]


class FunctionCall(Strict):
    """The function that a tool call names, and what it is given."""

    name: str = Field(min_length=1)
    """The function."""
    arguments: dict[str, Any]
    """Its arguments by name, any JSON value each."""


class ToolCall(Strict):
    """A call of a function, in OpenAI's form."""

    id: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """What the result's `tool_call_id` repeats."""
    type: Literal["function"] = "function"
    """There are no others."""
    function: FunctionCall
    """The function and its arguments."""

    def __str__(self) -> str:
        return f"{self.function.name}({json.dumps(self.function.arguments, ensure_ascii=False)})"


class Message(Strict):
    """One turn of a conversation. Only role and content are written where the other fields have their defaults."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks; `tool`: the result of a tool call."""
    content: str
    """What is said; may be empty beside tool calls."""
    tool_calls: list[ToolCall] = Field(default_factory=list, exclude_if=lambda value: not value)
    """Functions that the assistant calls."""
    tool_call_id: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """The call whose result a tool's message is."""
    name: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """The function whose result a tool's message is."""
    tools: list[dict[str, Any]] = Field(default_factory=list, exclude_if=lambda value: not value)
    """Functions that may be called in the conversation, as JSON schemas in OpenAI's form; its first message has them."""
    weight: Literal[0, 1] = Field(default=1, exclude_if=lambda value: value == 1)
    """0: no loss is taken on this message of the assistant."""

    @property
    def text(self) -> str:
        """What a person reads: the content, and each tool call on a line as `name({…})`."""
        return "\n".join([*([self.content] if self.content or not self.tool_calls else []), *map(str, self.tool_calls)])

    @property
    def uses_tools(self) -> bool:
        """Whether the message has tools, a tool call or a result."""
        return bool(self.role == "tool" or self.tool_calls or self.tools)


class Record(Strict):
    """A row that came from a user's file or was made from one."""

    id: str = Field(min_length=1)
    """Unique within the file; rows are joined by it."""
    line: int | None = None
    """1-based line (or row, or element of a list) in the source file, for error messages; none for rows a stage made."""
    file: str | None = None
    """Source file, where an input is read from several; none for a single one, which the manifest names."""


class PromptRecord(Record):
    """A row about a prompt."""

    prompt: list[Message] = Field(min_length=1)
    """The conversation up to the completion; the last message is the user's or a tool's."""


class Instruction(PromptRecord):
    """A prompt and the completion to imitate."""

    completion: str
    """The assistant's answer; may be empty beside tool calls."""
    tool_calls: list[ToolCall] = Field(default_factory=list, exclude_if=lambda value: not value)
    """Functions that the answer calls."""

    @model_validator(mode="after")
    def _has_content(self) -> Instruction:
        if not self.completion and not self.tool_calls:
            raise ValueError("expected a completion, tool calls or both")
        return self

    @property
    def answer(self) -> Message:
        """The completion as a message."""
        return Message(role="assistant", content=self.completion, tool_calls=self.tool_calls)


class Preference(PromptRecord):
    """A prompt and two completions, of which a judge preferred one."""

    chosen: str = Field(min_length=1)
    """The preferred completion."""
    rejected: str = Field(min_length=1)
    """The dispreferred completion."""
    chosen_score: float | None = None
    """Score of the chosen completion, where a scorer made the pair."""
    rejected_score: float | None = None
    """Score of the rejected completion, where a scorer made the pair."""


class Labelled(PromptRecord):
    """A prompt and one completion that is good or bad by itself."""

    completion: str = Field(min_length=1)
    """The completion."""
    desirable: bool
    """Whether the model should give such completions."""


class Prompt(PromptRecord):
    """A conversation to be continued."""

    reference: str | None = None
    """What a rule compares the completion with: a topic, a number, an answer."""
    fields: dict[str, str] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """The file's other columns with short values, such as a category: a comparison reports results by them. Lists and mappings
    are JSON."""


def prompt_key(row: Any) -> str:
    """The content of a row's prompt. An id would not do: the same prompt has different ids in different files."""
    return json.dumps([[message.role, message.text] for message in row.prompt], ensure_ascii=False)


class TextRow(Record):
    """A piece of plain text, used to measure forgetting."""

    text: str = Field(min_length=1)
    """The text."""


class Candidate(Strict):
    """One completion of one prompt, before selection."""

    prompt_id: str
    """`id` of the prompt."""
    candidate_index: int = Field(ge=0)
    """0-based number among the candidates of this prompt."""
    prompt: list[Message]
    """The conversation up to the completion."""
    reference: str | None
    """The prompt's reference, carried along for rules."""
    fields: dict[str, str] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """The prompt's other columns, likewise."""
    completion: str
    """The model's text, without the end-of-sequence token."""
    completion_token_ids: list[int]
    """The sampled tokens, with the end-of-sequence token where there is one."""
    completion_tokens: int = Field(ge=0)
    """Number of sampled tokens."""
    finish_reason: FinishReason
    """`stop`: the model ended by itself. `length`: it was cut at the limit."""
    seed: int
    """Seed of the request that sampled it."""


class ScoredCandidate(Candidate):
    """A candidate with one raw number per scorer."""

    scores: dict[str, float | None]
    """Score by scorer; null where the scorer gave no finite number."""
    disagreement: dict[str, float | None] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Standard deviation of the members' scores, by scorer; of scorers that are ensembles."""


class Drop(Strict):
    """A row that left, and why."""

    id: str
    """`id` (or `prompt_id`) of the row that left."""
    drop_reason: str
    """Why it left: `tie`, `identical`, `truncated`, …"""
    detail: str = ""
    """The values that decided it."""


def is_list(file: str) -> bool:
    """Whether a file, by its name, holds one JSON list. All its elements may be on one line, so their numbers name its rows."""
    return file.lower().removesuffix(".gz").endswith(".json")


def place_word(file: str) -> str:
    """What `Record.line` counts in a file."""
    return "element" if is_list(file) else "line"


def place_of(file: str, number: int) -> str:
    """`file:line`, or `file: element 3` in a list."""
    return f"{file}: element {number}" if is_list(file) else f"{file}:{number}"
