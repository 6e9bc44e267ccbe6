"""`align data inspect`: from a file to the report, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.cli.main import main
from align.testing.tiny import tiny_causal_lm, tiny_seq2seq_lm

ROWS = [{"prompt": f"Question {number}?", "chosen": f"answer {number}", "rejected": "no"} for number in range(12)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    path.write_text("\n".join([*lines, '{"prompt": "x"}', "not json"]) + "\n", encoding="utf-8")
    return path


def test_the_report_in_the_terminal_and_as_a_page(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert main(["data", "inspect", str(pairs), "--kind", "preferences", "--html", str(page)]) == 0
    text = capsys.readouterr().out
    assert "2 rows of 14 (14 %) cannot be used" in text
    assert "12 usable" in text
    assert "Question 11?" in page.read_text(encoding="utf-8")


def test_json_has_the_numbers_and_the_warnings(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text('{"prompt": "Question 3?"}\n', encoding="utf-8")
    arguments = ["data", "inspect", str(pairs), "--kind", "preferences", "--json", "--samples", "3"]
    assert main([*arguments, "--against", str(evaluation)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"]["rows_in"], found["source"]["rows_usable"], len(found["samples"])) == (14, 12, 3)
    assert found["characters"]["chosen"]["max"] == len("answer 10")
    assert found["preference"]["pairs"] == 12
    assert found["notices"][0]["level"] == "bad"


def test_with_a_model_tokens_are_counted(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_causal_lm(tmp_path / "model")
    arguments = ["data", "inspect", str(pairs), "--kind", "preferences", "--model", str(model)]
    assert main([*arguments, "--max-tokens", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"]["limit"] == 20
    assert found["tokens"]["over_limit"] == found["tokens"]["row"]["rows"] == 12


def test_with_an_encoder_decoder_model_tokens_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_seq2seq_lm(tmp_path / "model")
    (tmp_path / "lessons.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n', encoding="utf-8")
    lessons = [str(tmp_path / "lessons.jsonl"), "--kind", "instructions", "--model", str(model)]
    assert main(["data", "inspect", *lessons, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["row"]["rows"] == 1
    assert main(["data", "validate", *lessons, "--max-tokens", "2"]) == 3
    assert "lessons.jsonl:1: prompt:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["missing.jsonl", "--kind", "prompts"], 3, "there is no such file"),
        (["pairs.jsonl", "--kind", "text"], 3, "none of its 14 rows can be used as text"),
        (["pairs.jsonl", "--kind", "preferences", "--columns", "prompt"], 2, "expected FIELD=COLUMN"),
        (["pairs.jsonl", "--kind", "preferences", "--columns", "prmpt=x"], 2, "prmpt"),
        (["pairs.jsonl", "--kind", "preferences", "--max-tokens", "9"], 2, "--max-tokens needs --model"),
        (["pairs.jsonl", "--kind", "preferences", "--model", "nowhere"], 2, "nowhere"),
        (["pairs.jsonl", "--kind", "preferences", "--html", "pairs.jsonl"], 2, "expected a name that ends in .html"),
        (["pairs.jsonl", "--kind", "preferences", "--html", "pairs.jsonl/report.html"], 4, "cannot be written"),
        (["pairs.jsonl", "--kind", "preferences", "--against", "gone.jsonl"], 3, "gone.jsonl"),
        (["pairs.jsonl", "--kind", "rows"], 2, "preferences"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str],
    code: int,
    told: str,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(pairs.parent)
    assert main(["data", "inspect", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert "Traceback" not in captured.err
