"""A tiny tokenizer to show rows through, and the numbers of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from align.data.template import ChatFormat
from align.records import Record
from align.report.dataset.collect import Collector
from align.report.dataset.facts import Facts, SourceSummary
from align.report.dataset.tokens import TrainingView
from align.rows import data_kinds
from align.testing.tiny import tiny_tokenizer


@pytest.fixture(scope="session")
def chat_format() -> ChatFormat:
    """A byte-level tokenizer with a ChatML template; Korean letters are three tokens."""
    return ChatFormat(tiny_tokenizer(["the answer is", "Question"]), where="tiny")


@pytest.fixture(scope="session")
def training(chat_format: ChatFormat) -> TrainingView:
    return TrainingView(chat_format, model="tiny", limit=40)


@pytest.fixture(scope="session")
def measure() -> Callable[..., Facts]:
    """The numbers of rows, as `align data inspect` has them of a file."""

    def facts_of(records: Sequence[Record], kind: str = "preferences", *, summary: Any = None, **options: Any) -> Facts:
        collector = Collector(data_kinds()[kind], **({"seed": 17, "samples": 20} | options))
        for record in records:
            collector.add(record)
        given = {"dropped": {}, "findings": {}, "notes": []} | (summary or {})
        rows_in = len(records) + sum(given["dropped"].values())
        return collector.finish(SourceSummary("rows.jsonl", kind, rows_in, len(records), **given))

    return facts_of
