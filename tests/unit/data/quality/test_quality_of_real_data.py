"""Opt-in: the measures on public files, taken from the folder in ALIGN_REAL_DATA."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from align.data.quality.language import language_shares
from align.data.quality.length_baseline import length_baseline
from align.data.quality.near_duplicate import near_duplicate_clusters
from align.data.quality.overlap import EvaluationIndex

FOLDER = os.environ.get("ALIGN_REAL_DATA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="ALIGN_REAL_DATA is not set")


def rows_of(name: str) -> list[Any]:
    with gzip.open(Path(FOLDER) / name, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def chit_chat() -> list[dict[str, str]]:
    with (Path(FOLDER) / "chatbot_data" / "ChatbotData.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_train_and_test_of_gsm8k_are_different_questions() -> None:
    """With any common n-gram as the rule 94 would overlap; the three that are left are test questions with other numbers."""
    test = [(str(number), row["question"]) for number, row in enumerate(rows_of("gsm8k/test.jsonl.gz"))]
    train = [row["question"] for row in rows_of("gsm8k/train.jsonl.gz")]
    strict = EvaluationIndex(test, min_share=0.0)
    assert sum(strict.overlap(question) is not None for question in train) == 94
    usual = EvaluationIndex(test)
    assert [number for number, question in enumerate(train) if usual.overlap(question)] == [20, 1314, 5162]
    assert all(usual.overlap(question) for _, question in test)


def test_near_duplicates() -> None:
    """161 questions are repeated; one of them repeats a near duplicate of an earlier question, and counts as that."""
    found = near_duplicate_clusters(row["Q"] for row in chit_chat())
    assert (len(found.clusters), len(found.redundant), sum(c.same_text for c in found.clusters)) == (226, 238, 160)
    roleplay = json.loads((Path(FOLDER) / "gpteacher" / "roleplay-simple-deduped.json").read_text(encoding="utf-8"))
    instructions = [row["instruction"] for row in roleplay]
    assert [len(near_duplicate_clusters(instructions, threshold=t).clusters) for t in (0.8, 0.5)] == [5, 46]


def test_languages() -> None:
    assert set(language_shares(row["A"] for row in chit_chat())) <= {"ko", "und"}
    assert language_shares(row["question"] for row in rows_of("gsm8k/train.jsonl.gz")[:1000]) == {"en": 1.0}


def test_transcripts_prefer_the_shorter_side() -> None:
    def split(transcript: str) -> tuple[str, str]:
        prompt, _, completion = transcript.rpartition("\n\nAssistant:")
        return prompt, completion.strip()

    pairs = [(split(row["chosen"]), split(row["rejected"])) for row in rows_of("hh_rlhf/harmless_base_a.jsonl.gz")]
    found = length_baseline((prompt, len(chosen), len(rejected)) for (prompt, chosen), (_, rejected) in pairs)
    assert found is not None
    assert round(found.longer_won.value, 2) == 0.44
    assert round(found.accuracy.value, 2) == 0.56
    assert found.accuracy.low > 0.5
