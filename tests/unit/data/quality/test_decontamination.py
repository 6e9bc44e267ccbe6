"""Which rows leave training data."""

from __future__ import annotations

import pytest

from align.data.quality.decontamination import evaluation_overlap
from align.data.quality.overlap import EvaluationIndex
from align.records import Instruction, Message, Preference, Prompt, Record, TextRow

QUESTION = "A train travels 360 miles in 3 hours. How far does it go in 5 hours?"
ASK = [Message(role="user", content="Help me.")]


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
    drop = evaluation_overlap(record, EvaluationIndex([("gsm/7", QUESTION)]))
    assert drop is not None
    assert (drop.id, drop.drop_reason) == ("r", "overlaps_evaluation")
    assert drop.detail == "has 100 % of the evaluation prompt 'gsm/7', such as 'a train travels 360 miles in 3 hours'"


def test_other_rows_stay() -> None:
    row = Instruction(id="r", prompt=ASK, completion="A train travels far.")
    assert evaluation_overlap(row, EvaluationIndex([("gsm/7", QUESTION)])) is None
