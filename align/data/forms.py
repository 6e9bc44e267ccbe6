"""What of a record is rendered and tokenized, and which rows of tokens come of it; no limit on length is applied here."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.records import Instruction, Labelled, Message, Preference, PromptRecord
from align.rows import INSTRUCTIONS, LABELLED, PREFERENCES, DataKind

View = tuple[Sequence[Message], Mapping[str, str | Message]]
"""A prompt and the completions, by field, that may follow it; one with tool calls is a message."""

Tokens = list[list[int]]
"""Ids of a prompt, and of each completion behind it."""


@dataclass(frozen=True)
class TokenRow:
    """A row of tokens; what its parts are depends on the form."""

    parts: tuple[list[int], ...]
    """As `Form.parts` names them."""
    earlier: tuple[tuple[list[int], list[int]], ...] = ()
    """Turns in front, each with what stands before its completion, and the completion."""
    turns: tuple[int, ...] = ()
    """Places, in the conversation with its completion, of the messages that the loss is taken on; empty: the completion."""


def one_row(_record: Any, views: list[Tokens]) -> Iterator[TokenRow]:
    """The prompt and its completions as they are."""
    yield TokenRow(tuple(views[0]))


def as_it_is(record: Any) -> Sequence[Any]:
    """The record itself."""
    return (record,)


def answers(kind: DataKind[Any]) -> Callable[[Any], list[View]]:
    """A function that gives the prompt of a record and all its completions."""
    return lambda record: [(record.prompt, kind.answers_of(record))]


@dataclass(frozen=True)
class Form:
    """One way to make tokens of the records of a file."""

    name: str
    """Part of the key of what is kept: another name for other tokens."""
    record: type[PromptRecord]
    """Of the file."""
    parts: tuple[str, ...]
    """Names of the parts of a row, the prompt first."""
    counted: str
    """What the limit on tokens is of, in words."""
    views: Callable[[Any], list[View]]
    """What of a record is rendered."""
    rows: Callable[[Any, list[Tokens]], Iterator[TokenRow]] = one_row
    """Rows of a record and the tokens of its views; raises TemplateProblem to refuse the record."""
    expand: Callable[[Any], Sequence[Any]] = as_it_is
    """The records that a record of the file stands for."""
    each: int = 1
    """How many those are."""
    numbers: tuple[str, ...] = ()
    """Fields of a record that are kept beside its tokens, as numbers."""


def assistant_places(record: Instruction) -> list[int]:
    """Places of the assistant's messages that loss is taken on, in the conversation with its completion."""
    earlier = (place for place, message in enumerate(record.prompt) if message.role == "assistant" and message.weight)
    return [*earlier, len(record.prompt)]


def turns_of(record: Instruction) -> list[View]:
    """Every assistant message that loss is taken on, with the messages before it."""
    messages = [*record.prompt, record.answer]
    return [(messages[:place], {"completion": messages[place]}) for place in assistant_places(record)]


def joined_turns(record: Instruction, views: Sequence[Tokens], *, share_rows: bool = True) -> Iterator[TokenRow]:
    """Turns share a row where the later prompt begins with the earlier one and its completion, token by token.

    Where the template shows earlier turns otherwise (it removes their reasoning), each has a row of its own: every turn is
    trained on as it would be sampled.
    """
    places = assistant_places(record)
    row: list[tuple[list[int], list[int]]] = []
    seen: list[int] = []
    first = 0
    for number, (prompt, completion) in enumerate(views):
        # Without a token between two completions, the labels would not show where one ends.
        if row and not (share_rows and len(prompt) > len(seen) and prompt[: len(seen)] == seen):
            yield TokenRow(row[-1], tuple(row[:-1]), tuple(places[first:number]))
            row, seen, first = [], [], number
        row.append((prompt[len(seen) :], completion))
        seen = [*prompt, *completion]
    yield TokenRow(row[-1], tuple(row[:-1]), tuple(places[first:]))


def different_sides(_record: Preference, views: list[Tokens]) -> Iterator[TokenRow]:
    """A pair; two texts that become the same tokens (tokenizers may normalise) are none."""
    prompt, chosen, rejected = views[0]
    if chosen == rejected:
        raise TemplateProblem("identical", "chosen and rejected are the same tokens")
    yield TokenRow((prompt, chosen, rejected))


def sides_of(pair: Preference) -> list[Labelled]:
    """A pair as two labelled completions."""

    def side(name: str, completion: str, desirable: bool) -> Labelled:
        row_id = f"{pair.id}/{name}"
        return Labelled(id=row_id, line=pair.line, file=pair.file, prompt=pair.prompt, completion=completion, desirable=desirable)

    return [side("chosen", pair.chosen, True), side("rejected", pair.rejected, False)]


_ONE, _ONE_PARTS, _TWO_PARTS = "prompt and completion", ("prompt", "completion"), ("prompt", "chosen", "rejected")
_LONGER, _SCORES, _LABEL = "prompt and longer completion", ("chosen_score", "rejected_score"), ("desirable",)
COMPLETION = Form("completion", Instruction, _ONE_PARTS, _ONE, answers(INSTRUCTIONS))
EVERY_TURN = Form("every_turn", Instruction, _ONE_PARTS, _ONE, turns_of, joined_turns)
PAIR = Form(
    "pair", Preference, _TWO_PARTS, "prompt and longer completion", answers(PREFERENCES), different_sides, numbers=_SCORES
)
LABEL = Form("label", Labelled, _ONE_PARTS, _ONE, answers(LABELLED), numbers=_LABEL)
SIDES = Form("sides", Preference, _ONE_PARTS, _ONE, answers(LABELLED), expand=sides_of, each=2, numbers=_LABEL)
FORMS = {form.name: form for form in (COMPLETION, EVERY_TURN, PAIR, LABEL, SIDES)}
"""By name: a process that encodes is told the name."""


class EncodedViews(NamedTuple):
    """What became of some records."""

    tokens: dict[int, list[Tokens]]
    """Of each record's views, by its number."""
    refused: dict[int, tuple[str, str]]
    """Reason and detail, of records that the template refuses."""
    seconds: float
    """Time that the rendering took."""


def encode_views(
    records: Sequence[PromptRecord], chat_format: ChatFormat, views: Callable[[Any], list[View]], *, conversations: int
) -> EncodedViews:
    """Render and tokenize records.

    Args:
        conversations: of which the template's time limit is.
    Raises:
        FormatError: when the time limit is over.
    """
    rendered: dict[int, list[list[str]]] = {}
    refused: dict[int, tuple[str, str]] = {}
    started = time.perf_counter()
    # One limit around the loop; the limit inside each rendering then sets no timer.
    with chat_format.time_limit(conversations=conversations):
        for number, record in enumerate(records):
            try:
                rendered[number] = [chat_format.texts_of(*view) for view in views(record)]
            except TemplateProblem as problem:
                refused[number] = (problem.reason, str(problem))
    seconds = time.perf_counter() - started
    # All texts are rendered before the tokenizer is called, so that one call serves all rows.
    ids = iter(chat_format.token_ids_of([texts for of_record in rendered.values() for texts in of_record]))
    tokens = {number: list(itertools.islice(ids, len(texts))) for number, texts in rendered.items()}
    return EncodedViews(tokens, refused, seconds)
