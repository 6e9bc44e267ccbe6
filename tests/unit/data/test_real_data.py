"""Opt-in: public files, taken from the folder in ALIGN_REAL_DATA, with what is known to be wrong in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from align.data.source import Source, SourceFile
from align.data.validation import RowRules, Summary, validate_source
from align.data.validation.kind import guess_kind
from align.data.validation.summary import Problem
from align.rows import data_kinds

FOLDER = os.environ.get("ALIGN_REAL_DATA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="ALIGN_REAL_DATA is not set")


def _source(name: str) -> Source:
    return Source((SourceFile(Path(FOLDER) / name, name, {}),), name)


def _validate(name: str, kind: str) -> tuple[Summary, list[Problem]]:
    problems: list[Problem] = []
    return validate_source(_source(name), RowRules(data_kinds()[kind]), on_problem=problems.append), problems


def test_korean_chit_chat() -> None:
    summary, problems = _validate("chatbot_data/ChatbotData.csv", "instructions")
    assert (summary.rows_in, summary.rows_out, problems) == (11_823, 11_823, [])
    counts = summary.counts()
    assert (counts["repeated_prompts"], counts["repeated_rows"]) == (161, 73)
    assert counts["conflicting:label"] == 81
    assert "values of the unused column 'label' that end in white space: 1 (line 10678)" in summary.notes()


def test_transcripts() -> None:
    summary, problems = _validate("hh_rlhf/harmless_base_a.jsonl.gz", "preferences")
    assert summary.rows_in == 1_156
    assert [p.line for p in problems if p.reason == "empty_completion"] == [87, 517, 926, 1104]
    assert [p.line for p in problems if p.reason == "bad_roles"] == [668, 764]
    assert round(summary.counts()["chosen_longer"] / summary.rows_out, 2) == 0.44


def test_role_play() -> None:
    summary, problems = _validate("gpteacher/roleplay-simple-deduped.json", "instructions")
    assert (summary.rows_in, problems) == (3_146, [])
    assert summary.counts()["not_nfc"] == 1
    assert summary.counts()["near_duplicate"] >= 1


CLEAN: list[Any] = [
    ("gsm8k/train.jsonl.gz", "instructions", 7_473),
    ("gsm8k/test.jsonl.gz", "prompts", 1_319),
    ("llmbar/natural.json", "preferences", 100),
    ("ifeval/input_data.jsonl", "prompts", 541),
    ("mt_bench/question.jsonl", "prompts", 80),
]


@pytest.mark.parametrize(("name", "kind", "rows"), CLEAN)
def test_clean_files(name: str, kind: str, rows: int) -> None:
    summary, problems = _validate(name, kind)
    assert problems == []
    assert summary.rows_out == rows


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _ in CLEAN if "gsm8k" not in name])
def test_kinds_that_the_columns_tell(name: str, kind: str) -> None:
    assert guess_kind(_source(name)).name == kind
