"""Turns records into token ids. Rows that are too long, or that the template cannot render, are reported and never cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from align.config.row_checks import ROW_CHECKS
from align.config.sections import OnInvalid
from align.data.forms import (
    COMPLETION,
    EVERY_TURN,
    LABEL,
    PAIR,
    Tokens,
    View,
    answers,
    different_sides,
    encode_views,
    joined_turns,
)
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.errors import DataError
from align.records import Drop, Instruction, Labelled, Preference, Prompt, PromptRecord
from align.rows import PROMPTS
from align.runtime.profile import phase

Where = Callable[[int | None], str]
"""`file:line` of a row's origin; see `Artifact.where`."""

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

    rows: Sequence[EncodedT]
    drops: Sequence[Drop]

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
        every_turn: take the loss on every assistant message of weight 1, not on the completion alone; see `joined_turns`.
        max_tokens: most tokens of prompt and completion together, the end-of-sequence token counted.
        max_side_tokens: most tokens of the prompt alone and of the completion alone; encoder and decoder each have this limit.
        on_invalid: `error` raises an error that lists every row that does not fit; `drop` drops these rows.
        where: `file:line` of a record's line.
    Raises:
        DataError: for such rows with `error`, or if no row is left.
    """

    def build(record: Instruction, turns: list[Tokens]) -> Iterator[EncodedInstruction]:
        for prompt_token_ids, completion_token_ids in turns:
            if max_side_tokens is not None:
                longer = max(len(prompt_token_ids), len(completion_token_ids))
                require_length(longer, max_side_tokens, "prompt or completion", "what the model can see")
            require_length(len(prompt_token_ids) + len(completion_token_ids), max_tokens, COMPLETION.counted, "max_tokens")
        if not every_turn:
            yield EncodedInstruction(record.id, turns[0][0], turns[0][1])
            return
        # An encoder reads the prompt alone, so its turns cannot share a row.
        for row in joined_turns(record, turns, share_rows=max_side_tokens is None):
            yield EncodedInstruction(record.id, row.parts[0], row.parts[1], row.earlier, row.turns)

    return _encode(records, chat_format, (EVERY_TURN if every_turn else COMPLETION).views, build, on_invalid, where)


def encode_preferences(
    records: Sequence[Preference], chat_format: ChatFormat, *, max_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedPreference]:
    """Token ids of pairs; as `encode_instructions`, for the longer completion of each pair.

    Two texts that become the same tokens (tokenizers may normalise) are no pair: drop_reason `identical`.
    """

    def build(record: Preference, views: list[Tokens]) -> Iterator[EncodedPreference]:
        for row in different_sides(record, views):
            prompt_token_ids, chosen_token_ids, rejected_token_ids = row.parts
            length = len(prompt_token_ids) + max(len(chosen_token_ids), len(rejected_token_ids))
            require_length(length, max_tokens, PAIR.counted, "max_tokens")
            yield EncodedPreference(record.id, prompt_token_ids, chosen_token_ids, rejected_token_ids)

    return _encode(records, chat_format, PAIR.views, build, on_invalid, where)


def encode_labelled(
    records: Sequence[Labelled], chat_format: ChatFormat, *, max_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedInstruction]:
    """Token ids of labelled completions; as `encode_instructions`."""

    def build(record: Labelled, views: list[Tokens]) -> Iterator[EncodedInstruction]:
        prompt_token_ids, completion_token_ids = views[0]
        require_length(len(prompt_token_ids) + len(completion_token_ids), max_tokens, LABEL.counted, "max_tokens")
        yield EncodedInstruction(record.id, prompt_token_ids, completion_token_ids)

    return _encode(records, chat_format, LABEL.views, build, on_invalid, where)


def encode_prompts(
    records: Sequence[Prompt], chat_format: ChatFormat, *, max_prompt_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedPrompt]:
    """Token ids of prompts; as `encode_instructions`, with a limit for the prompt alone."""

    def build(record: Prompt, views: list[Tokens]) -> Iterator[EncodedPrompt]:
        require_length(len(views[0][0]), max_prompt_tokens, "prompt", "max_prompt_tokens")
        yield EncodedPrompt(record.id, views[0][0])

    return _encode(records, chat_format, answers(PROMPTS), build, on_invalid, where)


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


def require_length(tokens: int, limit: int, what: str, option: str) -> None:
    """Raise TemplateProblem if there are more tokens than the limit, which the option sets."""
    if tokens > limit:
        raise TemplateProblem("too_long", f"{what}: {tokens:,} tokens; {option} is {limit:,}")


@phase("tokenize")
def _encode(
    records: Sequence[RecordT],
    chat_format: ChatFormat,
    views: Callable[[RecordT], list[View]],
    build: Callable[[RecordT, list[Tokens]], Iterator[EncodedT]],
    on_invalid: OnInvalid,
    where: Where,
) -> Encoded[EncodedT]:
    """Render and tokenize every record.

    Args:
        views: what of a record is rendered.
        build: makes rows from a record and the ids of each of its views; raises TemplateProblem to refuse the record.
    """
    encoded, refused, _ = encode_views(records, chat_format, views, conversations=len(records))
    rows: list[EncodedT] = []
    for number, tokens in encoded.items():
        try:
            # As a list first: a record that is refused leaves none of its rows behind.
            rows += list(build(records[number], tokens))
        except TemplateProblem as problem:
            refused[number] = (problem.reason, str(problem))
    # Two passes refuse rows; sorting by number puts them back in the order of the records.
    drops = [Drop(id=records[number].id, drop_reason=refused[number][0], detail=refused[number][1]) for number in sorted(refused)]
    lines = (records[number].line for number in sorted(refused))
    return require_rows(Encoded(rows, drops), lines, len(records), on_invalid, where)


def require_rows(
    encoded: Encoded[EncodedT], lines: Iterable[int | None], num_records: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedT]:
    """The rows, if what was refused leaves some and the stage may drop the others.

    Args:
        lines: of the dropped records.
    Raises:
        RowsRefused: naming each dropped record. DataError: if there is no record.
    """
    rows, drops = encoded.rows, encoded.drops
    # With `drop` too, losing every row is an error: nothing could be trained on.
    if drops and (on_invalid == "error" or not rows):
        by_reason = encoded.dropped()
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in by_reason.items())
        message = [f"{where(None)}: {len(drops):,} of {num_records:,} rows cannot be used ({reasons})"]
        message += [f"{where(line)}: {drop.id}: {drop.detail}" for line, drop in zip(lines, drops, strict=True)]
        error = RowsRefused("\n".join(message), hint=_advice(list(by_reason), any_left=bool(rows)))
        error.drops = list(drops)
        raise error
    if not rows:
        raise DataError(f"{where(None)}: there is no row in it")
    return encoded
