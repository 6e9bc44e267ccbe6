"""Opt-in: public files, taken from the folder in ALIGN_REAL_DATA, with what is known to be wrong in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from align.data.reader import read_raw
from align.data.validation import validate_rows

FOLDER = os.environ.get("ALIGN_REAL_DATA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="ALIGN_REAL_DATA is not set")


def _validate(name: str, kind: str, **columns: str) -> Any:
    return validate_rows(read_raw(Path(FOLDER) / name), kind=kind, columns=columns, max_characters=100_000, source_name=name)


def test_korean_chit_chat() -> None:
    result = _validate("chatbot_data/ChatbotData.csv", "instructions", prompt="Q", completion="A")
    assert (result.rows_in, len(result.rows), result.problems) == (11_823, 11_823, [])
    assert (result.counts["repeated_prompts"], result.counts["repeated_rows"]) == (161, 73)
    assert result.counts["conflicting:label"] == 81
    assert "values of the unused column 'label' that end in white space: 1 (line 10678)" in result.notes


def test_transcripts() -> None:
    result = _validate("hh_rlhf/harmless_base_a.jsonl.gz", "preferences")
    assert result.rows_in == 1_156
    assert [p.line for p in result.problems if p.reason == "empty_completion"] == [87, 517, 926, 1104]
    assert [p.line for p in result.problems if p.reason == "bad_roles"] == [668, 764]
    assert round(result.counts["chosen_longer"] / len(result.rows), 2) == 0.44


@pytest.mark.parametrize(
    ("name", "kind", "columns", "rows"),
    [
        ("gsm8k/train.jsonl.gz", "instructions", {"prompt": "question", "completion": "answer"}, 7_473),
        ("gsm8k/test.jsonl.gz", "prompts", {"prompt": "question", "reference": "answer"}, 1_319),
        ("llmbar/natural.json", "preferences", {"prompt": "input", "chosen": "output_1", "rejected": "output_2"}, 100),
        ("ifeval/input_data.jsonl", "prompts", {"id": "key"}, 541),
        ("gpteacher/roleplay-simple-deduped.json", "instructions", {"prompt": "instruction", "completion": "output"}, 3_146),
    ],
)
def test_clean_files(name: str, kind: str, columns: dict[str, str], rows: int) -> None:
    result = _validate(name, kind, **columns)
    assert result.problems == []
    assert len(result.rows) == rows
