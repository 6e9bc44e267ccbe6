"""Turns records into token ids. Rows that are too long, or that the template cannot render, are reported and never cut."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from align.config.row_checks import ROW_CHECKS
from align.config.sections import OnInvalid
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.errors import DataError
from align.records import Drop, Instruction, Labelled, Message, Preference, Prompt, PromptRecord
from align.rows import INSTRUCTIONS, LABELLED, PREFERENCES, PROMPTS, DataKind
from align.runtime.profile import phase

Where = Callable[[int | None], str]
"""`file:line` of a row's origin; see `Artifact.where`."""

View = tuple[Sequence[Message], Mapping[str, str | Message]]
"""A prompt and the completions, by field, that may follow it; one with tool calls is a message."""

RecordT = TypeVar("RecordT", bound=PromptRecord)
EncodedT = TypeVar("EncodedT")


class RowsRefused(DataError):
    """Rows that cannot be rendered, or are too long."""

    drops: Sequence[Drop] = ()
    """What is wrong with each; empty where the error comes from another process."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in tokens."""

    id: str
    prompt_token_ids: list[int]


@dataclass(frozen=True)
class EncodedInstruction:
    """A prompt and a completion in tokens; `completion_token_ids` end with the end-of-sequence token.

    With the loss on every assistant turn, `earlier` has the turns in front of the last one, each with what stands before it and
    its own tokens, and `prompt_token_ids` are what follows them.
    """

    id: str
    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    earlier: tuple[tuple[list[int], list[int]], ...] = ()
    turns: tuple[int, ...] = ()
    """Places, in the conversation with its completion, of the messages that the loss is taken on; empty: the completion."""


@dataclass(frozen=True)
class EncodedPreference:
    """A prompt and two completions in tokens; each completion ends with the end-of-sequence token."""

    id: str
    prompt_token_ids: list[int]
    chosen_token_ids: list[int]
    rejected_token_ids: list[int]


@dataclass
class Encoded(Generic[EncodedT]):
    """Rows in tokens, in the order of the records, and the dropped rows."""

    rows: list[EncodedT]
    drops: list[Drop]

    def dropped(self) -> dict[str, int]:
        """Dropped rows by reason."""
        return dict(Counter(drop.drop_reason for drop in self.drops).most_common())


def encode_instructions(
    records: Sequence[Instruction],
    chat_format: ChatFormat,
    *,
    max_tokens: int,
    on_invalid: OnInvalid,
    where: Where,
    max_side_tokens: int | None = None,
    every_turn: bool = False,
) -> Encoded[EncodedInstruction]:
    """Token ids of instructions.

    Args:
        every_turn: take the loss on every assistant message of weight 1, not on the completion alone. Turns share a row where the
            later prompt begins with the earlier one and its completion, token by token. Where the template shows earlier turns
            otherwise (it removes their reasoning), each has a row of its own: every turn is trained on as it would be sampled.
        max_tokens: most tokens of prompt and completion together, the end-of-sequence token counted.
        max_side_tokens: most tokens of the prompt alone and of the completion alone; encoder and decoder each have this limit.
        on_invalid: `error` raises an error that lists every row that does not fit; `drop` drops these rows.
        where: `file:line` of a record's line.
    Raises:
        DataError: for such rows with `error`, or if no row is left.
    """

    def build(record: Instruction, *turns: list[list[int]]) -> Iterator[EncodedInstruction]:
        for prompt_token_ids, completion_token_ids in turns:
            if max_side_tokens is not None:
                longer = max(len(prompt_token_ids), len(completion_token_ids))
                _require_length(longer, max_side_tokens, "prompt or completion", "what the model can see")
            _require_length(len(prompt_token_ids) + len(completion_token_ids), max_tokens, "prompt and completion", "max_tokens")
        if not every_turn:
            yield EncodedInstruction(record.id, turns[0][0], turns[0][1])
            return
        # An encoder reads the prompt alone, so its turns cannot share a row.
        yield from _joined(record.id, turns, _assistant_places(record), share_rows=max_side_tokens is None)

    return _encode(INSTRUCTIONS, records, chat_format, build, on_invalid, where, views=_turns_of if every_turn else None)


def _assistant_places(record: Instruction) -> list[int]:
    """Places of the assistant's messages that loss is taken on, in the conversation with its completion."""
    earlier = (place for place, message in enumerate(record.prompt) if message.role == "assistant" and message.weight)
    return [*earlier, len(record.prompt)]


def _turns_of(record: Instruction) -> list[View]:
    """Every assistant message that loss is taken on, with the messages before it."""
    messages = [*record.prompt, record.answer]
    return [(messages[:place], {"completion": messages[place]}) for place in _assistant_places(record)]


def _joined(
    record_id: str, turns: Sequence[Sequence[list[int]]], places: Sequence[int], *, share_rows: bool
) -> Iterator[EncodedInstruction]:
    """Rows of a conversation's turns, each a prompt and a completion in tokens."""
    row: list[tuple[list[int], list[int]]] = []
    seen: list[int] = []
    first = 0
    for number, (prompt, completion) in enumerate(turns):
        # Without a token between two completions, the labels would not show where one ends.
        if row and not (share_rows and len(prompt) > len(seen) and prompt[: len(seen)] == seen):
            yield EncodedInstruction(record_id, *row[-1], tuple(row[:-1]), tuple(places[first:number]))
            row, seen, first = [], [], number
        row.append((prompt[len(seen) :], completion))
        seen = [*prompt, *completion]
    yield EncodedInstruction(record_id, *row[-1], tuple(row[:-1]), tuple(places[first:]))


def encode_preferences(
    records: Sequence[Preference], chat_format: ChatFormat, *, max_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedPreference]:
    """Token ids of pairs; as `encode_instructions`, for the longer completion of each pair.

    Two texts that become the same tokens (tokenizers may normalise) are no pair: drop_reason `identical`.
    """

    def build(record: Preference, tokens: list[list[int]]) -> Iterator[EncodedPreference]:
        prompt_token_ids, chosen_token_ids, rejected_token_ids = tokens
        if chosen_token_ids == rejected_token_ids:
            raise TemplateProblem("identical", "chosen and rejected are the same tokens")
        length = len(prompt_token_ids) + max(len(chosen_token_ids), len(rejected_token_ids))
        _require_length(length, max_tokens, "prompt and longer completion", "max_tokens")
        yield EncodedPreference(record.id, prompt_token_ids, chosen_token_ids, rejected_token_ids)

    return _encode(PREFERENCES, records, chat_format, build, on_invalid, where)


def encode_labelled(
    records: Sequence[Labelled], chat_format: ChatFormat, *, max_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedInstruction]:
    """Token ids of labelled completions; as `encode_instructions`."""

    def build(record: Labelled, tokens: list[list[int]]) -> Iterator[EncodedInstruction]:
        prompt_token_ids, completion_token_ids = tokens
        _require_length(len(prompt_token_ids) + len(completion_token_ids), max_tokens, "prompt and completion", "max_tokens")
        yield EncodedInstruction(record.id, prompt_token_ids, completion_token_ids)

    return _encode(LABELLED, records, chat_format, build, on_invalid, where)


def encode_prompts(
    records: Sequence[Prompt], chat_format: ChatFormat, *, max_prompt_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedPrompt]:
    """Token ids of prompts; as `encode_instructions`, with a limit for the prompt alone."""

    def build(record: Prompt, tokens: list[list[int]]) -> Iterator[EncodedPrompt]:
        _require_length(len(tokens[0]), max_prompt_tokens, "prompt", "max_prompt_tokens")
        yield EncodedPrompt(record.id, tokens[0])

    return _encode(PROMPTS, records, chat_format, build, on_invalid, where)


def _advice(reasons: Sequence[str], *, any_left: bool) -> str:
    """What to do about refused rows.

    Args:
        reasons: the most frequent one first.
        any_left: whether some rows can be used.
    """
    if "too_long" in reasons:
        some = "Shorten or remove these rows, raise the limit, or set on_invalid: drop to go on without them."
        return some if any_left else "No row is left; raise the limit or fix the data."
    advice = ROW_CHECKS[reasons[0]].advice
    if any_left:
        return f"{advice[0].upper()}{advice[1:]}; or set on_invalid: drop to go on without these rows."
    return f"No row is left; {advice}."


def _require_length(tokens: int, limit: int, what: str, option: str) -> None:
    if tokens > limit:
        raise TemplateProblem("too_long", f"{what}: {tokens:,} tokens; {option} is {limit:,}")


@phase("tokenize")
def _encode(
    kind: DataKind[RecordT],
    records: Sequence[RecordT],
    chat_format: ChatFormat,
    build: Callable[..., Iterator[EncodedT]],
    on_invalid: OnInvalid,
    where: Where,
    views: Callable[[RecordT], list[View]] | None = None,
) -> Encoded[EncodedT]:
    """Render and tokenize every record.

    Args:
        build: makes rows from a record and, for each of its views, the ids of the prompt and of each completion; raises
            TemplateProblem to refuse the record.
        views: what of a record is rendered; default: its prompt and all its completions.
    """
    views_of = views or (lambda record: [(record.prompt, kind.answers_of(record))])
    rendered: dict[int, list[list[str]]] = {}
    refused: dict[int, tuple[str, str]] = {}
    # One limit around the loop; the limit inside each rendering then sets no timer.
    with chat_format.time_limit(conversations=len(records)):
        for number, record in enumerate(records):
            try:
                rendered[number] = [chat_format.texts_of(*view) for view in views_of(record)]
            except TemplateProblem as problem:
                refused[number] = (problem.reason, str(problem))
    # All texts are rendered before the tokenizer is called, so that one call serves all rows.
    ids = iter(chat_format.token_ids_of([texts for of_record in rendered.values() for texts in of_record]))
    rows: list[EncodedT] = []
    for number, texts in rendered.items():
        tokens = list(itertools.islice(ids, len(texts)))
        try:
            # As a list first: a record that is refused leaves none of its rows behind.
            rows += list(build(records[number], *tokens))
        except TemplateProblem as problem:
            refused[number] = (problem.reason, str(problem))
    # Two passes refuse rows; sorting by number puts them back in the order of the records.
    drops = [Drop(id=records[number].id, drop_reason=refused[number][0], detail=refused[number][1]) for number in sorted(refused)]
    result = Encoded(rows, drops)
    # With `drop` too, losing every row is an error: nothing could be trained on.
    if drops and (on_invalid == "error" or not rows):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in result.dropped().items())
        lines = [f"{where(None)}: {len(drops):,} of {len(records):,} rows cannot be used ({reasons})"]
        lines += [f"{where(records[number].line)}: {records[number].id}: {refused[number][1]}" for number in sorted(refused)]
        error = RowsRefused("\n".join(lines), hint=_advice(list(result.dropped()), any_left=bool(rows)))
        error.drops = drops
        raise error
    if not rows:
        raise DataError(f"{where(None)}: there is no row in it")
    return result
