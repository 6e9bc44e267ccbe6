"""From a recipe's data input to rows and drops in the store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.config.inputs import DataInput
from align.data.ingest import Ingested, ingest
from align.data.source import Source, find_source
from align.errors import DataError, EnvironmentProblem
from align.records import Drop, Instruction, Prompt
from align.store.artifact import read_rows

GOOD = {"prompt": "a", "completion": "b"}
BAD = {"prompt": "a", "completion": ""}


def _source(spec: DataInput, path: Path) -> Source:
    """The file as `find_source` finds it, called as a recipe in another folder would call it."""
    (file,) = find_source(spec, lambda _: path).files
    return Source((replace(file, shown=f"data/{path.name}"),), f"data/{path.name}")


def _ingest(folder: Path, rows: list[Any] | str, name: str = "x.jsonl", **options: Any) -> Ingested:
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    spec = DataInput(kind=options.pop("kind", "instructions"), path=name, **options)
    output = folder / "entry"
    output.mkdir()
    return ingest(spec, _source(spec, path), output)


def test_rows_are_written_with_their_line(tmp_path: Path) -> None:
    result = _ingest(tmp_path, [GOOD, GOOD])
    rows = list(read_rows(tmp_path / "entry" / "rows.jsonl", Instruction))
    assert [(row.line, row.id.removeprefix(rows[0].id)) for row in rows] == [(1, ""), (2, "-2")]
    assert (tmp_path / "entry" / "drops.jsonl").read_text() == ""
    assert (result.rows_in, result.rows_out, result.dropped, result.source) == (2, 2, {}, "data/x.jsonl")
    assert result.findings == {"repeated_prompts": 1, "repeated_rows": 1}


def test_other_columns_of_prompts_are_kept_without_moving_an_id(tmp_path: Path) -> None:
    others = {"category": "글쓰기", "level": 3, "tags": ["a"], "essay": "x" * 101, "half": "\ud83d", "none": None}
    others |= {"args": [{"n": 2, "of_another_row": None}, {}], "long": ["x" * 2_000]}
    result = _ingest(tmp_path, [{"prompt": "a", **others}, {"prompt": "b"}], kind="prompts")
    rows = list(read_rows(tmp_path / "entry" / "rows.jsonl", Prompt))
    kept = {"category": "글쓰기", "level": "3", "tags": '["a"]', "args": '[{"n": 2}, {}]'}
    assert [row.fields for row in rows] == [kept, {}]
    lines = (tmp_path / "entry" / "rows.jsonl").read_text().splitlines()
    assert "fields" not in lines[1], "rows without such columns are written as before"
    assert rows[1].model_dump_json() == lines[1]
    assert any("but for results by field: category" in note for note in result.notes)
    (tmp_path / "plain").mkdir()
    _ingest(tmp_path / "plain", [{"prompt": "a"}], kind="prompts")
    (plain,) = read_rows(tmp_path / "plain" / "entry" / "rows.jsonl", Prompt)
    assert plain.id == rows[0].id, "an id decides the seed of a completion"


def test_an_unusable_row_stops_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _ingest(tmp_path, [GOOD, BAD, {"prompt": "x"}])
    lines = caught.value.render().splitlines()
    assert lines[0] == "data/x.jsonl: 2 of 3 rows cannot be used (empty_completion 1, missing_field 1)"
    assert lines[1] == "data/x.jsonl:2: completion: is empty"
    assert lines[-1].startswith("→ ")
    assert list((tmp_path / "entry").iterdir()) == []
    assert caught.value.exit_code == 3


def test_a_thousand_unusable_rows_fit_in_fifteen_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _ingest(tmp_path, [BAD] * 1000)
    lines = caught.value.render().splitlines()
    assert len(lines) == 15
    assert "1,000 of 1,000" in lines[0]


def test_dropped_rows_are_written_with_their_reason(tmp_path: Path) -> None:
    result = _ingest(tmp_path, [BAD, GOOD], on_invalid="drop")
    (drop,) = read_rows(tmp_path / "entry" / "drops.jsonl", Drop)
    assert (drop.id, drop.drop_reason, drop.detail) == ("row-00001", "empty_completion", "data/x.jsonl:1: completion: is empty")
    assert (result.rows_in, result.rows_out, result.dropped) == (2, 1, {"empty_completion": 1})


@pytest.mark.parametrize(("rows", "told"), [([], "no row"), ([BAD], "1 of 1")])
def test_without_a_usable_row_dropping_is_no_way_out(tmp_path: Path, rows: list[Any], told: str) -> None:
    with pytest.raises(DataError) as caught:
        _ingest(tmp_path, rows, on_invalid="drop")
    assert told in str(caught.value)


def test_nor_is_it_when_the_file_ends_early(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _ingest(tmp_path, 'prompt,completion\na,b\n"open,c\nd,e\n', name="x.csv", on_invalid="drop")
    assert "data/x.csv:3" in str(caught.value)
    assert "to its end" in str(caught.value.hint)


def test_lines_of_a_text_file_are_prompts_where_prompts_are_wanted(tmp_path: Path) -> None:
    assert _ingest(tmp_path, "one\n\ntwo\n", name="x.txt", kind="prompts").rows_out == 2


def test_a_hub_dataset_without_a_hub(tmp_path: Path) -> None:
    """The suite runs with HF_HUB_OFFLINE=1."""
    with pytest.raises(EnvironmentProblem) as caught:
        spec = DataInput(kind="text", dataset="owner/absent", split="train")
        ingest(spec, find_source(spec, Path), tmp_path)
    assert "owner/absent" in str(caught.value)
    assert "local file" in str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_only_the_first_rows_are_read(tmp_path: Path, name: str) -> None:
    bad = '{"prompt": ""}\n' if name == "x.jsonl" else ",\n"
    good = [json.dumps(GOOD) if name == "x.jsonl" else "a,b" for _ in range(3)]
    text = "\n".join([*([] if name == "x.jsonl" else ["prompt,completion"]), *good]) + "\n" + bad
    result = _ingest(tmp_path, text, name=name, max_rows=3)
    assert (result.rows_in, result.rows_out) == (3, 3)


def test_shares_have_no_prompt_in_common_and_are_the_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"질문 {number % 100}", "chosen": f"good {number}", "rejected": "bad"} for number in range(200)]
    prompts: list[set[str]] = []
    for name, order, share in (("a", rows, [0, 0.5]), ("b", rows[::-1], [0.5, 1])):
        (tmp_path / name).mkdir()
        result = _ingest(tmp_path / name, order, kind="preferences", share=share)
        written = [json.loads(line) for line in (tmp_path / name / "entry" / "rows.jsonl").read_text().splitlines()]
        assert result.rows_out == len(written)
        assert result.dropped == {"outside_share": 200 - len(written)}
        prompts.append({row["prompt"][0]["content"] for row in written})
        assert len(written) == 2 * len(prompts[-1]), "both rows of a prompt stay together"
    assert prompts[0].isdisjoint(prompts[1])
    assert len(prompts[0] | prompts[1]) == 100
    assert 35 <= len(prompts[0]) <= 65


@pytest.mark.parametrize("share", [[0.5, 0.5], [0.6, 0.2], [0, 1.5], [0.5], 0.5])
def test_an_empty_share_is_refused(share: Any) -> None:
    with pytest.raises(ValidationError, match="is empty|less than or equal to 1|expected two numbers"):
        DataInput(kind="prompts", path="x.jsonl", share=share)
