"""From records to token ids: rows that are too long or that the template cannot show are named, never cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from align.config.sections import OnInvalid
from align.data.template import ChatFormat, TemplateProblem
from align.errors import DataError
from align.records import Drop, Instruction, Preference, Prompt, PromptRecord
from align.rows import INSTRUCTIONS, PREFERENCES, PROMPTS, DataKind

Where = Callable[[int | None], str]
"""`file:line` of a row's origin; see `Artifact.where`."""

RecordT = TypeVar("RecordT", bound=PromptRecord)
EncodedT = TypeVar("EncodedT")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in tokens."""

    id: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class EncodedInstruction:
    """A prompt and a completion in tokens; `completion_ids` end with the end-of-sequence token."""

    id: str
    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True)
class EncodedPreference:
    """A prompt and two completions in tokens; each completion ends with the end-of-sequence token."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass
class Encoded(Generic[EncodedT]):
    """Rows in tokens, in the order of the records, and the rows that left."""

    rows: list[EncodedT]
    drops: list[Drop]

    def dropped(self) -> dict[str, int]:
        """Rows that left, by reason."""
        return dict(Counter(drop.drop_reason for drop in self.drops).most_common())


def encode_instructions(
    records: Sequence[Instruction],
    chat_format: ChatFormat,
    *,
    max_tokens: int,
    on_invalid: OnInvalid,
    where: Where,
    max_side_tokens: int | None = None,
) -> Encoded[EncodedInstruction]:
    """Token ids of instructions.

    Args:
        max_tokens: most tokens of prompt and completion together, the end-of-sequence token counted.
        max_side_tokens: most tokens of the prompt, and of the completion, alone: what encoder and decoder can see.
        on_invalid: `error` names every row that does not fit; `drop` leaves it out and says so.
        where: `file:line` of a record's line.
    Raises:
        DataError: for such rows with `error`, or if no row is left.
    """
    intake = _Intake(INSTRUCTIONS, records, chat_format)
    rows = []
    for record, (prompt_ids, completion_ids) in intake.tokenized():
        longer, seen = max(len(prompt_ids), len(completion_ids)), "what the model can see"
        if max_side_tokens is not None and not intake.fits(record, longer, max_side_tokens, "prompt or completion", seen):
            continue
        if intake.fits(record, len(prompt_ids) + len(completion_ids), max_tokens, "prompt and completion", "max_tokens"):
            rows.append(EncodedInstruction(record.id, prompt_ids, completion_ids))
    return intake.result(rows, on_invalid, where)


def encode_preferences(
    records: Sequence[Preference], chat_format: ChatFormat, *, max_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedPreference]:
    """Token ids of pairs; as `encode_instructions`, for the longer completion of each pair.

    Two texts that the tokenizer makes the same tokens of (it may normalise) are no pair: drop_reason `identical`.
    """
    intake = _Intake(PREFERENCES, records, chat_format)
    rows = []
    for record, (prompt_ids, chosen_ids, rejected_ids) in intake.tokenized():
        length = len(prompt_ids) + max(len(chosen_ids), len(rejected_ids))
        if chosen_ids == rejected_ids:
            intake.refuse(record, "identical", "chosen and rejected are the same tokens")
        elif intake.fits(record, length, max_tokens, "prompt and longer completion", "max_tokens"):
            rows.append(EncodedPreference(record.id, prompt_ids, chosen_ids, rejected_ids))
    return intake.result(rows, on_invalid, where)


def encode_prompts(
    records: Sequence[Prompt], chat_format: ChatFormat, *, max_prompt_tokens: int, on_invalid: OnInvalid, where: Where
) -> Encoded[EncodedPrompt]:
    """Token ids of prompts; as `encode_instructions`, with a limit for the prompt alone."""
    intake = _Intake(PROMPTS, records, chat_format)
    rows = []
    for record, (prompt_ids,) in intake.tokenized():
        if intake.fits(record, len(prompt_ids), max_prompt_tokens, "prompt", "max_prompt_tokens"):
            rows.append(EncodedPrompt(record.id, prompt_ids))
    return intake.result(rows, on_invalid, where)


class _Intake(Generic[RecordT]):
    """Renders and tokenizes records, and keeps account of those that cannot be used."""

    def __init__(self, kind: DataKind[RecordT], records: Sequence[RecordT], chat_format: ChatFormat) -> None:
        self._kind = kind
        self._records = records
        self._format = chat_format
        self._refused: list[tuple[RecordT, str, str]] = []

    def tokenized(self) -> list[tuple[RecordT, list[list[int]]]]:
        """Every record that can be rendered, with the ids of its prompt and of each completion.

        All texts go to the tokenizer in one call, which is faster than one call a row; equal prompts go once.
        """
        with self._format.time_limit(conversations=len(self._records)):
            rendered = [(record, texts) for record in self._records if (texts := self._render(record)) is not None]
        unique = list(dict.fromkeys(text for _, texts in rendered for text in texts))
        ids = dict(zip(unique, self._format.tokenize(unique), strict=True))
        return [(record, [ids[text] for text in texts]) for record, texts in rendered]

    def _render(self, record: RecordT) -> list[str] | None:
        try:
            return self._format.texts_of(record.prompt, self._kind.completions_of(record).values())
        except TemplateProblem as problem:
            self.refuse(record, problem.reason, str(problem))
            return None

    def refuse(self, record: RecordT, reason: str, message: str) -> None:
        self._refused.append((record, reason, message))

    def fits(self, record: RecordT, tokens: int, limit: int, what: str, option: str) -> bool:
        """Whether the record is short enough; it is refused when it is not."""
        if tokens <= limit:
            return True
        self.refuse(record, "too_long", f"{what}: {tokens:,} tokens; {option} is {limit:,}")
        return False

    def result(self, rows: list[EncodedT], on_invalid: OnInvalid, where: Where) -> Encoded[EncodedT]:
        """The rows and the drops, or the error that names all of them."""
        refused = self._refused
        if refused and (on_invalid == "error" or not rows):
            reasons = Counter(reason for _, reason, _ in refused)
            told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            summary = f"{where(None)}: {len(refused):,} of {len(self._records):,} rows cannot be used ({told})"
            lines = [f"{where(record.line)}: {record.id}: {message}" for record, _, message in refused]
            hint = "Shorten or remove these rows, raise the limit, or set on_invalid: drop to go on without them."
            raise DataError(
                "\n".join([summary, *lines]), hint=hint if rows else "No row is left; raise the limit or mend the data."
            )
        if not rows:
            raise DataError(f"{where(None)}: there is no row in it")
        order = {id(record): number for number, record in enumerate(self._records)}
        refused.sort(key=lambda item: order[id(item[0])])
        return Encoded(rows, [Drop(id=record.id, drop_reason=reason, detail=message) for record, reason, message in refused])
