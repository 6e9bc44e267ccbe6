from __future__ import annotations

import pytest

from align.records import Candidate, Message
from align.stages.generate import CandidateTally

ROWS = [
    ("a", "yes", 3, "stop"),
    ("a", "yes", 3, "stop"),
    ("a", "no", 2, "stop"),
    ("b", "yes", 9, "length"),
    ("b", "ja", 1, "stop"),
]


def candidates(rows: list[tuple[str, str, int, str]]) -> list[Candidate]:
    return [
        Candidate(
            prompt_id=prompt,
            candidate_index=number,
            prompt=[Message(role="user", content=prompt)],
            reference=None,
            completion=text,
            completion_token_ids=[5] * tokens,
            completion_tokens=tokens,
            finish_reason=reason,  # type: ignore[arg-type]
            seed=number,
        )
        for number, (prompt, text, tokens, reason) in enumerate(rows)
    ]


def test_candidates_are_counted_as_they_go_by() -> None:
    tally, rows = CandidateTally(), candidates(ROWS)
    assert list(tally.counted(iter(rows))) == rows
    assert tally.rows == 5
    assert tally.metrics() == {
        "finish_reasons": {"stop": 4, "length": 1},
        "completion_tokens_mean": pytest.approx(18 / 5),
        "completion_tokens_p50": 3,
        "completion_tokens_p95": 9,
        # "yes" is there twice for one prompt, and once for the other.
        "distinct_share": 4 / 5,
    }


def test_a_single_candidate() -> None:
    tally = CandidateTally()
    list(tally.counted(candidates(ROWS[:1])))
    assert [tally.metrics()[f"completion_tokens_{name}"] for name in ("mean", "p50", "p95")] == [3, 3, 3]
