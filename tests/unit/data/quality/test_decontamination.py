"""Which rows leave training data."""

from __future__ import annotations

import pytest

from align.data.quality.overlap import EvaluationIndex, Overlap
from align.records import Instruction, Message, Preference, Prompt, Record, TextRow
from align.rows import DataKind, kind_of

QUESTION = "A train travels 360 miles in 3 hours. How far does it go in 5 hours?"
ASK = [Message(role="user", content="Help me.")]


def _overlap(record: Record) -> Overlap | None:
    kind = kind_of(type(record))
    assert isinstance(kind, DataKind)
    return EvaluationIndex([("gsm/7", QUESTION)]).overlap(*kind.texts(record).values())


@pytest.mark.parametrize(
    "record",
    [
        Prompt(id="r", prompt=[*ASK, Message(role="assistant", content="Yes?"), Message(role="user", content=QUESTION)]),
        Instruction(id="r", prompt=ASK, completion=QUESTION),
        Preference(id="r", prompt=ASK, chosen="No.", rejected=QUESTION),
        TextRow(id="r", text=f"Exercise 4. {QUESTION} Exercise 5."),
    ],
)
def test_an_evaluation_prompt_is_found_anywhere_in_a_row(record: Record) -> None:
    overlap = _overlap(record)
    assert overlap is not None
    assert overlap.describe() == "has 100 % of the evaluation prompt 'gsm/7', such as 'a train travels 360 miles in 3 hours'"


def test_other_rows_stay() -> None:
    row = Instruction(id="r", prompt=ASK, completion="A train travels far.")
    assert _overlap(row) is None
