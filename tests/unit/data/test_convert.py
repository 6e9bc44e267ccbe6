"""Canonical rows: nothing is lost on the way from any shape to JSON Lines, to Parquet and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.cli.main import main
from align.config.inputs import DataInput
from align.data import source as data_source
from align.data.convert import convert
from align.data.reader import read_raw
from align.data.writer import write_canonical
from align.rows import PREFERENCES

USER = {"role": "user", "content": "Hi"}


def _convert(*arguments: str | Path) -> int:
    return main(["data", "convert", *map(str, arguments)])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_table_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("Q,A,label\nHi,Hello,0\n", encoding="utf-8")
    assert _convert(tmp_path / "a.csv", "--kind", "instructions", "--to", tmp_path / "b.jsonl") == 0
    (row,) = _lines(tmp_path / "b.jsonl")
    assert list(row) == ["id", "prompt", "completion"]
    assert (row["prompt"], row["completion"]) == ([USER], "Hello")
    told = capsys.readouterr().out
    assert "b.jsonl: 1 of 1 rows" in told
    assert "shape: question/answer (Q, A)" in told
    assert "columns not used: label" in told


def test_what_is_left_out_is_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": ""}\n{"id": "x", "text": "b"}\n', encoding="utf-8")
    to = tmp_path / "out" / "b.parquet"
    assert _convert(tmp_path / "a.jsonl", "--kind", "text", "--to", to) == 3
    assert list((tmp_path / "out").iterdir()) == []
    assert _convert(tmp_path / "a.jsonl", "--kind", "text", "--to", to, "--on-invalid", "drop", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows_in"], told["rows_out"], told["dropped"]) == (3, 2, {"empty_text": 1})
    (drop,) = _lines(tmp_path / "out" / "b.drops.jsonl")
    assert drop["drop_reason"] == "empty_text"
    assert drop["detail"].endswith("a.jsonl:2: text: is empty")
    assert [row["text"] for _, row in read_raw(to) if isinstance(row, dict)] == ["a", "b"]


@pytest.mark.parametrize(("to", "told"), [("a.jsonl", "would overwrite"), ("b.csv", ".jsonl or .parquet")])
def test_what_is_not_written(tmp_path: Path, to: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert _convert(tmp_path / "a.jsonl", "--kind", "text", "--to", tmp_path / to) == 2
    assert told in capsys.readouterr().err
    assert (tmp_path / "a.jsonl").read_text() == '{"text": "a"}\n'


def test_a_place_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "b.jsonl").mkdir()
    assert _convert(tmp_path / "a.txt", "--kind", "prompts", "--to", tmp_path / "b.jsonl") == 4
    assert _convert(tmp_path / "a.txt", "--kind", "prompts", "--to", tmp_path / "a.txt" / "c.jsonl") == 4
    assert "cannot be written" in capsys.readouterr().err


def test_a_part_from_the_hub_replaces_an_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset on the hub is no file, so it cannot be the file that would be overwritten."""
    monkeypatch.setattr(data_source, "fetch_dataset_rows", lambda *_: (None, iter([(1, {"text": "new"})])))
    part = {"dataset": "owner/rows", "split": "train", "weight": 1.0}
    spec = DataInput.model_validate({"kind": "text", "mixture": {"hub": part}})
    (tmp_path / "a.jsonl").write_text("old")
    convert(spec, data_source.find_source(spec, Path), tmp_path / "a.jsonl")
    assert [row["text"] for row in _lines(tmp_path / "a.jsonl")] == ["new"]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(lambda text: text + "x")
_PROMPT = st.lists(_TEXT, min_size=1, max_size=3).map(
    lambda texts: [message for text in texts for message in (USER | {"content": text}, {"role": "assistant", "content": text})][
        :-1
    ]
)
_SCORE = st.none() | st.floats(allow_nan=False, allow_infinity=False)
_PAIRS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": _PROMPT,
            "chosen": _TEXT,
            "rejected": _TEXT.map("other ".__add__),
            "chosen_score": _SCORE,
            "rejected_score": _SCORE,
        }
    ),
    min_size=1,
    max_size=15,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=_PAIRS)
def test_there_and_back_every_byte_is_the_same(tmp_path: Path, pairs: list[dict[str, Any]]) -> None:
    rows = [{"id": f"row {number}", **pair} for number, pair in enumerate(pairs)]
    kind = ("--kind", "preferences", "--to")
    assert write_canonical(tmp_path / "a.jsonl", PREFERENCES, rows) == len(rows)
    assert _convert(tmp_path / "a.jsonl", *kind, tmp_path / "b.parquet") == 0
    assert _convert(tmp_path / "b.parquet", *kind, tmp_path / "c.jsonl") == 0
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert [row for _, row in read_raw(tmp_path / "b.parquet")] == rows


def test_rows_that_evaluation_will_ask_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "How many apples does Kim have left when seven of thirty are eaten by birds?"
    lessons = [
        ("Kim: " + asked.lower(), "23"),
        ("What is a bird?", "An animal."),
        ("Say", asked),
        ("오늘 날씨 어때", "맑아요"),
    ]
    rows = [json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) for prompt, completion in lessons]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"id": "q7", "prompt": asked}), encoding="utf-8")
    (tmp_path / "more.txt").write_text("오늘 날씨 어때\n내일은 우산을 가져가야 할까요\n", encoding="utf-8")
    held = ("--decontaminate", tmp_path / "held_out.jsonl", "--decontaminate", tmp_path / "more.txt")
    to = tmp_path / "b.jsonl"
    assert _convert(tmp_path / "a.jsonl", "--kind", "instructions", "--to", to, *held, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows_in"], told["rows_out"], told["dropped"]) == (4, 1, {"overlaps_evaluation": 3})
    assert [row["completion"] for row in _lines(to)] == ["An animal."]
    drops = _lines(tmp_path / "b.drops.jsonl")
    assert [drop["drop_reason"] for drop in drops] == ["overlaps_evaluation"] * 3
    assert (
        f"{tmp_path / 'a.jsonl'}:1: has 100 % of the evaluation prompt '{tmp_path / 'held_out.jsonl'}:q7'" in drops[0]["detail"]
    )


def test_when_every_row_is_asked_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "내일은 우산을 가져가야 할까요"}', encoding="utf-8")
    to, itself = tmp_path / "out" / "b.jsonl", ("--decontaminate", tmp_path / "a.jsonl")
    assert _convert(tmp_path / "a.jsonl", "--kind", "prompts", "--to", to, *itself) == 3
    assert "no row is left (overlaps_evaluation 1)" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
