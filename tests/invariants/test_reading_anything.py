"""Whatever a file holds: no traceback, every row is kept or dropped with a reason, and the same again the second time."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.data.source import Source, SourceFile
from align.data.validation import RowRules, collect_rows
from align.errors import DataError
from align.rows import data_kinds

pytestmark = pytest.mark.slow

KINDS = ("instructions", "preferences", "prompts", "text")
ROWS_WANTED = 10_000
_TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "a", "\u200b", "\ud800", "e\u0301", "a\x00", "1.5", "\n\nHuman: a\n\nAssistant: b"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_NAMES = [
    "id",
    "prompt",
    "completion",
    "messages",
    "chosen",
    "rejected",
    "chosen_score",
    "reference",
    "text",
    "label",
    "output_1",
]
_MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": _TEXT})
_PROMPT = _TEXT | st.lists(_MESSAGE, max_size=3)
_ROW = st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=5) | st.fixed_dictionaries(
    {"prompt": _PROMPT, "chosen": _TEXT, "rejected": _TEXT, "completion": _TEXT, "text": _TEXT}, optional={"id": _JSON}
)
_seen = {"rows": 0}


@st.composite
def _changed_lines(draw: st.DrawFn) -> bytes:
    """A good file of which some bytes were changed, taken out or put in."""
    row = {"prompt": "가 나", "chosen": "b", "rejected": "c", "text": "d", "completion": "e"}
    data = bytearray((json.dumps(row, ensure_ascii=False) + "\n").encode() * 120)
    for place, byte, how in draw(
        st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255), st.integers(0, 2)), max_size=6)
    ):
        place = min(place, len(data) - 1)
        data[place : place + (how > 0)] = bytes([byte] if how < 2 else [])
    return bytes(data)


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: list[list[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows([["prompt", "completion", "label"], *rows])
    return stream.getvalue().encode("utf-8", "surrogatepass")


_CELL = st.text(max_size=8)
_FILES = st.one_of(
    st.tuples(st.just("x.jsonl"), st.lists(_ROW, min_size=20, max_size=80).map(_lines)),
    st.tuples(st.just("x.json"), st.lists(_ROW, max_size=40).map(lambda rows: json.dumps(rows).encode())),
    st.tuples(st.just("x.jsonl"), _changed_lines()),
    st.tuples(st.just("x.json"), _changed_lines().map(lambda data: b"[" + data.replace(b"\n", b",\n") + b"]")),
    st.tuples(st.just("x.csv"), st.lists(st.lists(_CELL, min_size=2, max_size=4), max_size=60).map(_csv)),
    st.tuples(
        st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.tsv", "x.txt", "x.jsonl.gz", "x.parquet", "x.arrow"]),
        st.binary(max_size=300),
    ),
)


def _read(name: str, data: bytes, kind: str, action: Any) -> tuple[Any, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        source = Source((SourceFile(path, name, {}),), name)
        problems: list[Any] = []
        checks = {"repeated_rows": action, "conflicting_pairs": action, "not_nfc": action}
        try:
            with collect_rows(
                source, RowRules(data_kinds()[kind], on_invalid="drop", checks=checks), on_problem=problems.append
            ) as rows:
                return rows.summary, [record.model_dump_json() for record in rows.records()], list(rows.drops()), problems
        except DataError as error:
            return (str(error).replace(folder, ""),)


@settings(max_examples=450, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(file=_FILES, kind=st.sampled_from(KINDS), action=st.sampled_from(["keep", "drop"]))
def test_no_file_crashes_and_no_row_is_lost(file: tuple[str, bytes], kind: str, action: str) -> None:
    first, again = (_read(*file, kind, action) for _ in range(2))
    assert first == again
    if len(first) == 1:
        return
    summary, rows, drops, problems = first
    _seen["rows"] += summary.rows_in
    assert summary.rows_in == len(rows) + len(drops)
    assert summary.rows_out == len(rows)
    assert summary.dropped.total() == len(drops)
    assert len({json.loads(row)["id"] for row in rows}) == len(rows)
    assert all(problem.render() and problem.advice for problem in problems)
    assert {drop.drop_reason for drop in drops} == set(summary.dropped)


def test_that_was_ten_thousand_rows(request: pytest.FixtureRequest) -> None:
    if not _seen["rows"]:
        pytest.skip("alone, it has nothing to count")
    assert _seen["rows"] >= ROWS_WANTED
