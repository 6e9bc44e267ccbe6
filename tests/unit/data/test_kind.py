"""Which kind of rows a file holds: told by the columns, or asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.source import Source, SourceFile
from align.data.validation.kind import guess_kind
from align.errors import DataError

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def _source(folder: Path, rows: list[Any]) -> Source:
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source((SourceFile(path, "x.jsonl", {}),), "x.jsonl")


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([PAIR, PAIR], "preferences"),
        ([PAIR, PAIR, {"prompt": "a"}], "preferences"),  # a broken pair makes no file of prompts
        ([{"prompt": "a", "completion": "b"}], "instructions"),
        ([{"prompt": "a", "source": "x"}, 7], "prompts"),
        ([{"text": "a"}], "text"),
        ([{"prompt": "a", "completion": "b", "label": True}], "labelled"),
        ([{"prompt": "a", "completion": "b", "label": "joy"}], "instructions"),
    ],
)
def test_the_kind_that_leaves_fewest_columns_unused(rows: list[Any], kind: str, tmp_path: Path) -> None:
    assert guess_kind(_source(tmp_path, rows)).name == kind


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"question": "a", "answer": "b"}], "can be read as instructions or prompts; they have question, answer"),
        ([{"q": "a", "a": "b", "label": 1}], "can be read as instructions or prompts"),  # such a label is usually a topic
        ([{"x": 1}], "fit no kind; they have x"),
        ([], "fit no kind; they have no column"),
    ],
)
def test_nothing_is_guessed_where_several_or_none_fit(rows: list[Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        guess_kind(_source(tmp_path, rows))


def test_a_file_of_which_no_row_can_be_read_says_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "prompt": "b"}\n' * 3)
    with pytest.raises(DataError) as caught:
        guess_kind(Source((SourceFile(path, "rows.jsonl", {}),), "rows.jsonl"))
    assert caught.value.message == "rows.jsonl:1: not usable JSON: the key 'prompt' is there twice"
    assert caught.value.hint == "Fix the line; write files with a JSON library."
