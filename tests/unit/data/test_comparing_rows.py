"""What comparing all rows finds, in memory or from files, in one process or two; and what leaves because of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.config.inputs import DataInput
from align.data.ingest import ingest
from align.data.quality.overlap import EvaluationIndex
from align.data.source import Source, SourceFile
from align.data.validation import block, collect_rows, valid_rows, validate_source
from align.data.validation.block import blocks_of, marks_of
from align.data.validation.collection import Validator
from align.data.validation.duplicates import PARTITIONS, DuplicateIndex, contradictions, mirrored, repetitions
from align.data.validation.scan import RowRules
from align.rows import INSTRUCTIONS, PREFERENCES, PROMPTS, TEXT

TABLE = np.dtype([("key", "u8"), ("first", "u8"), ("second", "u8"), ("seq", "u8")])


def _table(*rows: tuple[int, int, int]) -> Any:
    return np.array([(*row, seq) for seq, row in enumerate(rows)], TABLE)


def _source(folder: Path, *files: Iterable[dict[str, Any]]) -> Source:
    found = []
    for number, rows in enumerate(files):
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(SourceFile(path, path.name, {}))
    return Source(tuple(found), "rows")


class TestMatches:
    rows = _table((1, 5, 6), (1, 6, 5), (2, 5, 0), (1, 5, 6), (1, 6, 7), (2, 5, 0))

    def test_repetitions_name_the_first(self) -> None:
        found = repetitions(self.rows, "key", "first", "second")
        assert (found.rows.tolist(), found.others.tolist()) == ([3, 5], [0, 2])

    def test_contradictions_concern_the_whole_group_and_count_once(self) -> None:
        found = contradictions(self.rows, ("key",), "first")
        assert (found.rows.tolist(), found.others.tolist()) == ([0, 1, 3, 4], [1, 0, 1, 0])
        assert found.counted.tolist() == [1]

    def test_mirrored_pairs(self) -> None:
        found = mirrored(self.rows)
        assert (found.rows.tolist(), found.counted.tolist()) == ([0, 1, 3], [1])


class TestDuplicateIndex:
    @pytest.mark.parametrize("rows_in_memory", [10, 10_000])
    def test_equal_keys_meet_wherever_they_were_kept(self, rows_in_memory: int, tmp_path: Path) -> None:
        dtype = np.dtype([("key", "u8"), ("seq", "u8")])
        keys = np.random.default_rng(0).integers(0, 2**63, 500, dtype=np.uint64)
        keys[400] = keys[7]
        index = DuplicateIndex(dtype, tmp_path, "x", rows_in_memory=rows_in_memory)
        for start in range(0, 500, 50):
            piece = np.empty(50, dtype)
            piece["key"], piece["seq"] = keys[start : start + 50], np.arange(start, start + 50)
            index.add(piece)
        assert len(list(tmp_path.iterdir())) == (0 if rows_in_memory > 500 else PARTITIONS)
        tables = list(index.duplicates())
        assert [table["seq"].tolist() for table in tables if len(table)] == [[7, 400]]
        assert list(tmp_path.iterdir()) == []


ROWS = [
    {"prompt": "a", "chosen": "b", "rejected": "c", "source": "x"},
    {"prompt": "a", "chosen": "b", "rejected": "c", "source": "x"},
    {"prompt": "a", "chosen": "c", "rejected": "b", "source": "y"},
    {"prompt": "d", "chosen": "b", "rejected": "c", "source": "x", "id": "k"},
    {"prompt": "e", "chosen": "", "rejected": "c", "source": "x"},
    {"prompt": "f", "chosen": "b", "rejected": "c", "source": "x", "id": "k"},
]


@pytest.mark.parametrize("rows_in_memory", [1, 1000])
def test_from_files_as_in_memory(rows_in_memory: int, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    problems: list[Any] = []
    validator = Validator(
        _source(tmp_path, ROWS), RowRules(PREFERENCES), folder, on_problem=problems.append, rows_in_memory=rows_in_memory
    )
    validator.run(processes=1)
    assert validator.summary.counts() == {
        "repeated_rows": 1,
        "conflicting_pairs": 1,
        "conflicting:source": 1,
        "repeated_prompts": 2,
    }
    assert validator.summary.dropped == {"empty_completion": 1, "duplicate_id": 1}
    assert [problem.render() for problem in problems] == [
        "0.jsonl:5: chosen: is empty",
        "0.jsonl:6: id: 'k' is also the id of line 4",
    ]


def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "BLOCK_BYTES", 2000)
    source = _source(tmp_path, ROWS * 40, [*ROWS, {"prompt": "é" * 3000, "chosen": "1 ", "rejected": "2"}])
    assert len(list(blocks_of(source))) > 4
    told: list[Any] = []
    for processes in (1, 2):
        problems: list[Any] = []
        summary = validate_source(source, RowRules(PREFERENCES), on_problem=problems.append, processes=processes)
        told.append((summary, problems))
    assert told[0] == told[1]
    assert told[0][0].rows_in == len(ROWS) * 41 + 1


def test_what_is_to_be_dropped_leaves_and_is_listed_in_order(tmp_path: Path) -> None:
    checks: Any = {"conflicting_pairs": "drop", "repeated_rows": "drop"}
    rules = RowRules(PREFERENCES, on_invalid="drop", checks=checks)
    with collect_rows(_source(tmp_path, ROWS[:3], ROWS[3:]), rules) as rows:
        kept, drops = list(rows.records()), list(rows.drops())
    assert [(record.file, record.line, record.id) for record in kept] == [("1.jsonl", 1, "k")]
    assert [(drop.drop_reason, drop.detail) for drop in drops] == [
        ("conflicting_pairs", "0.jsonl:1: 0.jsonl:3 has this pair the other way round"),
        ("repeated_rows", "0.jsonl:2: repeats 0.jsonl:1 entirely"),
        ("conflicting_pairs", "0.jsonl:3: 0.jsonl:1 has this pair the other way round"),
        ("empty_completion", "1.jsonl:2: chosen: is empty"),
        ("duplicate_id", "1.jsonl:3: 'k' is also the id of 1.jsonl:1"),
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_that_overlap_an_evaluation_prompt_are_dropped_unless_they_repeat_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(block, "BLOCK_BYTES", 200)
    asked = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "What is it?"},
    ]
    rows: list[dict[str, Any]] = [
        {"prompt": asked, "completion": "a"},
        {"prompt": "Say", "completion": "WHAT is it"},
        {"prompt": "b", "completion": "b"},
    ]
    index = EvaluationIndex([("q7", "what is it")])
    rules = RowRules(INSTRUCTIONS, checks={"repeated_rows": "drop"}, evaluation=index)
    with collect_rows(_source(tmp_path, [*rows, rows[0]]), rules, processes=processes) as collected:
        kept, drops = list(collected.records()), list(collected.drops())
    assert [record.line for record in kept] == [3]
    assert [(drop.drop_reason, drop.detail) for drop in drops] == [
        ("overlaps_evaluation", "0.jsonl:1: has 100 % of the evaluation prompt 'q7', such as 'what is it'"),
        ("overlaps_evaluation", "0.jsonl:2: has 100 % of the evaluation prompt 'q7', such as 'what is it'"),
        ("repeated_rows", "0.jsonl:4: repeats line 1 entirely"),
    ]


def test_near_duplicates_leave_where_the_recipe_says_so(tmp_path: Path) -> None:
    story = "Once upon a time there was a small house at the end of a long road, and nobody lived in it"
    source = _source(tmp_path, [{"prompt": story}, {"prompt": "Something else entirely"}, {"prompt": story + "!"}])
    spec = DataInput(kind="prompts", path="x", checks={"near_duplicate": "drop"})
    assert [record.line for record in valid_rows(source, spec)] == [1, 2]
    assert [record.line for record in valid_rows(source, spec.model_copy(update={"checks": {}}))] == [1, 2, 3]


def test_a_mixture_is_taken_by_weight(tmp_path: Path) -> None:
    first, second = ([{"prompt": f"{name} {number}"} for number in range(count)] for name, count in (("p", 6), ("q", 4)))
    source = _source(tmp_path, [*first, {"prompt": ""}], second)
    files = tuple(replace(file, part=name) for file, name in zip(source.files, ("one", "two"), strict=True))
    mixture = {name: {"path": "x", "weight": 1} for name in ("one", "two")}
    spec = DataInput.model_validate({"kind": "prompts", "mixture": mixture, "on_invalid": "drop"})
    entry = tmp_path / "entry"
    entry.mkdir()
    result = ingest(spec, Source(files, "mixture", {"one": 1.0, "two": 1.0}), entry)
    rows = [json.loads(line) for line in (entry / "rows.jsonl").read_text().splitlines()]
    assert sorted(row["id"].split("/")[0] for row in rows) == ["one"] * 4 + ["two"] * 4
    assert result.dropped == {"not_sampled": 2, "empty_prompt": 1}
    assert result.rows_in == result.rows_out + sum(result.dropped.values())


def test_a_byte_order_mark_is_told_and_may_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}\n')
    source = Source((SourceFile(path, "x.jsonl", {}),), "x.jsonl")
    assert list(marks_of(source.files[0])) == ["byte_order_mark"]
    summary = validate_source(source, RowRules(PROMPTS))
    assert summary.counts() == {"byte_order_mark": 1}
    assert summary.dropped == {"not_json": 1}
    assert validate_source(source, RowRules(PROMPTS, checks={"byte_order_mark": "error"})).errors == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.csv", b"prompt\r\na\r\n"), ("x.jsonl.gz", gzip.compress(b'{"prompt": "a"}\r\n', mtime=0))],
    ids=["csv", "gzip"],
)
def test_line_ends_of_windows_are_told_and_change_nothing(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    source = Source((SourceFile(tmp_path / name, name, {}),), name)
    with collect_rows(source, RowRules(PROMPTS)) as collection:
        assert collection.summary.counts() == {"crlf_line_ends": 1}
        assert [row.prompt[0].content for row in collection.records()] == ["a"]  # type: ignore[attr-defined]
    assert validate_source(source, RowRules(PROMPTS, checks={"crlf_line_ends": "error"})).errors == 1


def test_a_line_too_long_for_memory_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "BLOCK_BYTES", 100)
    monkeypatch.setattr(block, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("align.formats.lines.MAX_LINE_BYTES", 1000)
    source = _source(tmp_path, [{"text": "a"}, {"text": "b" * 5000}, {"text": "c"}])
    problems: list[Any] = []
    summary = validate_source(source, RowRules(TEXT), on_problem=problems.append)
    assert (summary.rows_in, summary.rows_out) == (3, 2)
    assert [(problem.reason, problem.line) for problem in problems] == [("too_long", 2)]
