"""Sums that no grouping changes, and rows that are brought together."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.selection.candidate import joined
from align.selection.files.layout import lay_out
from align.selection.files.reader import RowFile
from align.selection.files.regroup import regroup
from align.selection.selector import SelectionTally, Totals, exact_sum


def test_sums_of_sums_are_rounded_once() -> None:
    values = [1e16, 1.0, -1e16, 1e-3, 3.3]
    facts = []
    for part in (values[:2], values[2:]):
        tally = SelectionTally()
        tally.values["x"].extend(part)
        tally.counts["n"] += len(part)
        facts.append(json.loads(json.dumps(tally.facts())))
    totals = Totals(facts)
    assert totals.mean("x") == statistics.fmean(values)
    assert (totals.least("x"), totals.number("x"), totals.counts["n"]) == (-1e16, 5, 5)


def test_sums_beyond_the_range_of_numbers_are_none() -> None:
    assert exact_sum([math.inf, 1.0]) is None
    assert exact_sum([1.7e308, 1.7e308]) is None
    assert exact_sum([1.7e308, -1.7e308]) == []


def test_rows_of_a_prompt_are_brought_together_in_the_order_of_first_appearance(tmp_path: Path) -> None:
    ids = ["b", "a", "b", "c", "a"]
    rows = [{"prompt_id": one, "prompt": "x", "completion": str(place), "scores": {"rm": 1.0}} for place, one in enumerate(ids)]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    files = [RowFile(tmp_path / "x.jsonl")]
    layout = lay_out(files)
    assert layout.scattered
    (partition,) = regroup(layout, ["rm"], tmp_path / "grouped")
    found = [(one.prompt_id, one.texts) for one in joined(partition.parts(["rm"]))]
    assert found == [("b", ["0", "2"]), ("a", ["1", "4"]), ("c", ["3"])]


def test_tasks_begin_with_a_prompt_where_a_row_group_begins(tmp_path: Path) -> None:
    """Groups of 4 rows, prompts of 3: the prompts at 3, 6, 9 begin in groups 0, 1, 2; a task has 4 rows or more."""
    table = pa.table({"prompt_id": [f"p{row // 3}" for row in range(12)], "prompt": ["x"] * 12, "completion": ["y"] * 12})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    tasks = lay_out([RowFile(tmp_path / "x.parquet")], task_rows=4).tasks
    assert [(piece.start, piece.stop) for ((piece,),) in tasks] == [(0, 6), (6, 12)]


def test_scattered_files_of_different_form_are_refused(tmp_path: Path) -> None:
    row = {"prompt_id": "p", "prompt": "x", "completion": "y", "scores": {"rm": 1.0}}
    other = {**row, "prompt_id": "q"}
    pq.write_table(pa.Table.from_pylist([row, other]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{**row, "candidate_index": 1}]), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    for names, expected in ((["a.parquet", "b.parquet"], "other columns"), (["a.parquet", "c.jsonl"], "several formats")):
        with pytest.raises(DataError, match=expected):
            regroup(lay_out([RowFile(tmp_path / name) for name in names]), ["rm"], tmp_path / "grouped")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_scattered_rows_keep_every_value(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"prompt_id": prompt_id, "prompt": [{"role": "user", "content": "x"}], "completion": text, "scores": {"rm": score}}
        for prompt_id, text, score in [("p", "y", -0.0), ("q", "z", 1.0), ("p", "안", math.nan)]
    ]
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    (partition,) = regroup(lay_out([RowFile(path)]), ["rm"], tmp_path / "grouped")
    first, second = joined(partition.parts(["rm"]))
    assert (first.prompt_id, first.texts, repr(first.scores)) == ("p", ["y", "안"], "[[-0.0, nan]]")
    assert first.prompt == second.prompt == [{"role": "user", "content": "x"}]


def test_a_wrong_row_of_a_scattered_file_is_named_by_its_own_line(tmp_path: Path) -> None:
    rows = [{"prompt_id": one, "prompt": "x", "completion": "y", "score": 1.0} for one in "aba"]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {**rows[0], "completion": 3}]))
    with pytest.raises(DataError, match=r"x.jsonl:4: completion: expected a text, got 3"):
        regroup(lay_out([RowFile(tmp_path / "x.jsonl")]), ["score"], tmp_path / "grouped")


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"prompt_id": ["p"], "prompt": ["x"], "completion": broken, "score": [1.0]}), tmp_path / "x.parquet")
    file = RowFile(tmp_path / "x.parquet")
    (task,) = lay_out([file]).tasks
    with pytest.raises(DataError, match="not UTF-8"):
        list(task.parts(["score"]))
