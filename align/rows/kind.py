"""A kind of rows, and the register of all kinds.

An entry holds everything that differs between kinds; reading, checks, reports, schemas, options and references follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from align.records import Instruction, Message, Preference, PromptRecord, TextRow
from align.rows.shapes import Shape
from align.strict import Strict

RowT = TypeVar("RowT", bound=Strict)
RecordT = TypeVar("RecordT", bound=PromptRecord | TextRow)
ORIGIN_COLUMNS = frozenset({"line", "file"})
"""Fields that say where a row came from; they are not part of its content."""
OTHER_COLUMNS = "fields"
"""The field for columns that no other field takes, in records that keep them."""
TOOL_CALLS = "tool_calls"
"""The field for the tool calls of an instruction's completion, which canonical files write as a message."""


@dataclass(frozen=True)
class RowKind(Generic[RowT]):
    """Rows of one record, as stages write and read them."""

    name: str
    """Its name in recipes and manifests."""
    record: type[RowT]
    phrase: str
    """Its rows as messages call them, in the plural."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a canonical file: the record's fields without its origin and the file's other columns."""
        return tuple(name for name in self.record.model_fields if name not in {*ORIGIN_COLUMNS, OTHER_COLUMNS, TOOL_CALLS})


@dataclass(frozen=True)
class DataKind(RowKind[RecordT]):
    """Rows that users' files may hold: about a prompt, or about a plain text."""

    shapes: tuple[Shape, ...]
    """Shapes of its rows. align writes the first; where no shape fits, messages name the closest, in this order."""
    completions: tuple[str, ...]
    """The record's completions, in the order in which they are tokenized."""
    details: tuple[str, ...]
    """The record's other fields, such as a reference or a label. Rows that are equal in all fields are repetitions."""
    contradiction: Literal["conflicting_pairs", "conflicting_completions", "conflicting_labels"] | None
    """The check that finds rows with the same prompt that contradict each other; None where rows cannot. Labels, the second of
    `contents`, contradict each other where prompt and completion are equal."""

    def __post_init__(self) -> None:
        unknown = {*self.completions, *self.details} - self.record.model_fields.keys()
        # At most two, because the table of hashes has two columns beside the subject's.
        if unknown or not self.shapes or len(self.contents) > 2:
            raise TypeError(f"kind {self.name}: expected shapes and at most two fields of {self.record.__name__} ({unknown})")

    @property
    def subject(self) -> Literal["prompt", "text"]:
        """The field that the row is about."""
        return "prompt" if self.has_prompt else "text"

    @property
    def sides(self) -> tuple[str, ...]:
        """The fields with the texts of a row, the subject first."""
        return (self.subject, *self.completions)

    # cached_property writes to __dict__, so it works in a frozen dataclass; the inner loops ask for every row.
    @cached_property
    def contents(self) -> tuple[str, ...]:
        """The fields of a row besides its subject; at most two."""
        return (*self.completions, *self.details)

    @cached_property
    def has_prompt(self) -> bool:
        """Whether a row is about a prompt rather than a plain text."""
        return issubclass(self.record, PromptRecord)

    @cached_property
    def is_pair(self) -> bool:
        """Whether a row is a pair of completions, chosen and rejected."""
        return issubclass(self.record, Preference)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Fields that a row may have, and that `columns` may map."""
        return tuple(dict.fromkeys(["id", *(name for one in self.shapes for name in (*one.required, *one.optional))]))

    @cached_property
    def keeps_other_columns(self) -> bool:
        """Whether the record has a place for the file's other columns."""
        return OTHER_COLUMNS in self.record.model_fields

    def is_plain(self, shape: str, columns: Iterable[str]) -> bool:
        """Whether rows of a shape look as align writes them, with columns named like the fields."""
        return shape == self.shapes[0].name and self.shapes[0].fields.issuperset(columns)

    def messages(self, record: RecordT) -> Sequence[Message]:
        """The prompt's messages; none for a plain text."""
        return record.prompt if isinstance(record, PromptRecord) else ()

    def subject_text(self, record: RecordT) -> str:
        """The prompt's messages joined by line ends, or the text."""
        return "\n".join(message.text for message in record.prompt) if isinstance(record, PromptRecord) else record.text

    def completions_of(self, record: RecordT) -> dict[str, str]:
        """The texts of the completions by field, as a person reads them, in the order in which they are tokenized."""
        return {field: answer if isinstance(answer, str) else answer.text for field, answer in self.answers_of(record).items()}

    def answers_of(self, record: RecordT) -> dict[str, str | Message]:
        """The completions by field; one with tool calls is a message."""
        if isinstance(record, Instruction) and record.tool_calls:
            return {"completion": record.answer}
        return {field: getattr(record, field) for field in self.completions}

    def texts(self, record: RecordT) -> dict[str, str]:
        """Every text of the row by its label in messages: `prompt`, `prompt message 2`, `chosen`, `text`."""
        if not isinstance(record, PromptRecord):
            return {"text": record.text}
        alone = len(record.prompt) == 1
        prompt = {
            "prompt" if alone else f"prompt message {number}": message.text
            for number, message in enumerate(record.prompt, start=1)
        }
        return prompt | self.completions_of(record)


KindT = TypeVar("KindT", bound=RowKind[Any])

ROW_KINDS: dict[str, RowKind[Any]] = {}
"""Every kind by name, in listing order; `register` fills it."""


def register(kind: KindT) -> KindT:
    """Make a kind known to recipes, commands and artifacts.

    Raises:
        TypeError: if another kind has its name or its record.
    """
    if any(kind.name == other.name or kind.record is other.record for other in ROW_KINDS.values()):
        raise TypeError(f"there is a kind of rows with the name {kind.name} or the record {kind.record.__name__}")
    ROW_KINDS[kind.name] = kind
    return kind


def data_kinds() -> Mapping[str, DataKind[Any]]:
    """The kinds that users' files may hold, by name."""
    return {name: kind for name, kind in ROW_KINDS.items() if isinstance(kind, DataKind)}


def kind_of(record: type[BaseModel]) -> RowKind[Any]:
    """The kind whose rows have this record.

    Raises:
        TypeError: if there is none.
    """
    found = [kind for kind in ROW_KINDS.values() if kind.record is record]
    if not found:
        raise TypeError(f"{record.__name__} is the record of no kind of rows; align/rows/table.py registers them")
    return found[0]
