"""Forty kinds of bad files: each is named by its reason and line, with exit code 3, in at most 15 lines, without a traceback."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main
from align.config.inputs import DataInput
from align.data.ingest import ingest
from align.data.source import find_source
from align.data.validation import RowRules, validate_source
from align.errors import AlignError
from align.rows import data_kinds

GOOD = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
CALL = b'{"prompt": "a", "completion": "b"}\n'
DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"


def _row(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _pair(**fields: Any) -> bytes:
    return _row(**{"prompt": "a", "chosen": "b", "rejected": "c", **fields})


def _parquet(rows: list[dict[str, Any]], cut: int = 0) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()[: -cut or None]


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TWICE = GOOD + _pair(id="x") + _pair(id="x", prompt="other")

# name of the file, kind, content, reason, line
FILES: list[tuple[str, str, bytes, str, int]] = [
    ("not_json.jsonl", "preferences", GOOD + b"{prompt: a}\n", "not_json", 2),
    ("cut_line.jsonl", "preferences", GOOD + GOOD[:20], "not_json", 2),
    ("key_twice.jsonl", "preferences", b'{"prompt": "a", "prompt": "b", "chosen": "b", "rejected": "c"}\n', "not_json", 1),
    ("too_deep.jsonl", "preferences", GOOD + DEEP, "not_json", 2),
    ("html.jsonl", "preferences", b"<html>\n" + GOOD, "not_json", 1),
    ("list_in_lines.jsonl", "preferences", GOOD + b"[1, 2]\n", "not_an_object", 2),
    ("latin_1.jsonl", "preferences", GOOD + '{"prompt": "é"}\n'.encode("latin-1"), "bad_encoding", 2),
    ("korean_cp949.csv", "instructions", "prompt,completion\n가,나\n".encode("cp949"), "bad_encoding", 2),
    ("utf_16.jsonl", "preferences", GOOD.decode().encode("utf-16"), "bad_encoding", 1),
    ("gzip_unnamed.jsonl", "preferences", gzip.compress(GOOD), "bad_encoding", 1),
    ("zip.jsonl", "preferences", b"PK\x03\x04" + GOOD, "bad_encoding", 1),
    ("cut.jsonl.gz", "preferences", gzip.compress(GOOD)[:-4], "damaged_file", 2),
    ("no_gzip.jsonl.gz", "preferences", GOOD, "damaged_file", 1),
    ("cut.parquet", "preferences", _parquet([json.loads(GOOD)], cut=9), "damaged_file", 1),
    ("no_arrow.arrow", "preferences", GOOD, "damaged_file", 1),
    ("lines.json", "preferences", GOOD + GOOD, "not_json", 1),
    ("cut.json", "preferences", b"[" + GOOD.strip() + b",\n" + GOOD[:30], "not_json", 2),
    ("two_lists.json", "preferences", b"[" + GOOD + b"]\n[" + GOOD + b"]", "not_json", 3),
    ("open_quote.csv", "instructions", b'prompt,completion\na,b\n"c,d\ne,f\n', "not_csv", 3),
    ("bare_quote.csv", "instructions", b'prompt,completion\n"a"b,c\n', "not_csv", 2),
    ("comma.csv", "instructions", b"prompt,completion\na,b,c\n", "wrong_columns", 2),
    ("header_twice.csv", "instructions", b"prompt,prompt\na,b\n", "wrong_columns", 1),
    ("no_rejected.jsonl", "preferences", _row(prompt="a", chosen="b"), "missing_field", 1),
    ("null.jsonl", "instructions", CALL + _row(prompt="a", completion=None), "missing_field", 2),
    ("number.jsonl", "instructions", _row(prompt="a", completion=7), "wrong_type", 1),
    ("word_as_score.jsonl", "preferences", _pair(chosen_score="high"), "wrong_type", 1),
    ("nan.jsonl", "preferences", _pair(chosen_score=float("nan")), "nonfinite_score", 1),
    ("infinite.csv", "preferences", b"prompt,chosen,rejected,chosen_score\na,b,c,1e999\n", "nonfinite_score", 2),
    ("blank_prompt.jsonl", "instructions", _row(prompt=" \n", completion="b"), "empty_prompt", 1),
    ("zero_width.jsonl", "instructions", _row(prompt="a", completion="\u200b\u3164"), "empty_completion", 1),
    ("blank_text.jsonl", "text", _row(text="\ufeff"), "empty_text", 1),
    ("long.jsonl", "text", _row(text="x" * 100_001), "too_long", 1),
    ("surrogate.jsonl", "preferences", GOOD + _pair(chosen="\ud800"), "lone_surrogate", 2),
    ("tool.jsonl", "prompts", _row(prompt=[{"role": "tool", "content": "a"}]), "bad_roles", 1),
    ("system_last.jsonl", "prompts", _row(prompt=[USER, {"role": "system", "content": "a"}, USER]), "bad_roles", 1),
    ("user_twice.jsonl", "prompts", _row(prompt=[USER, USER]), "bad_roles", 1),
    ("no_answer.jsonl", "instructions", _row(messages=[USER]), "bad_roles", 1),
    ("other_prompt.jsonl", "preferences", _pair(chosen=[{**USER, "content": "z"}, ASSISTANT]), "prompt_differs", 1),
    ("same.jsonl", "preferences", GOOD + _pair(chosen="c"), "identical", 2),
    ("same_trimmed.jsonl", "preferences", GOOD + _pair(chosen="c \n"), "identical_after_trim", 2),
    ("same_indented.jsonl", "preferences", GOOD + _pair(chosen=" c"), "identical_after_trim", 2),
    ("two_shapes.jsonl", "instructions", _row(prompt="a", completion="b", messages=[USER, ASSISTANT]), "ambiguous_shape", 1),
    ("id_twice.jsonl", "preferences", TWICE, "duplicate_id", 3),
    ("id_number.jsonl", "text", _row(id=1.5, text="a"), "wrong_type", 1),
]


@pytest.mark.parametrize(("name", "kind", "content", "reason", "line"), FILES, ids=[file[0] for file in FILES])
def test_a_bad_file_is_named_by_reason_and_line(
    name: str, kind: str, content: bytes, reason: str, line: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    spec = DataInput.model_validate({"kind": kind, "path": name})
    source = find_source(spec, lambda _: path)
    problems: list[Any] = []
    summary = validate_source(source, RowRules(data_kinds()[kind]), on_problem=problems.append)
    assert (problems[0].reason, problems[0].line) == (reason, line)
    assert not summary.usable
    with pytest.raises(AlignError) as caught:
        ingest(spec, source, tmp_path)
    told = caught.value.render()
    assert caught.value.exit_code == 3
    assert len(told.splitlines()) <= 15
    assert f"{path}:{line}" in told
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"[\n" + GOOD + b"]", "a JSON array goes into a file that ends in .json"),
        ("x.jsonl", GOOD.replace(b"}\n", b"},\n"), "rows stand on lines of their own, without commas"),
        ("x.jsonl", GOOD.replace(b'"', b"'"), "keys and texts need double quotes"),
        ("x.jsonl", b"<!DOCTYPE html>\n", "this is a web page or XML"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "is a pointer of Git LFS"),
        ("x.jsonl", b"PK\x03\x04" + GOOD, "save the sheet as CSV UTF-8"),
        ("x.jsonl", '{"prompt": "가나다"}\n'.encode("cp949"), "iconv -f cp949 -t utf-8"),
        ("x.csv", "prompt,chosen,rejected\n가나,다라,마바\n".encode("cp949"), "iconv -f cp949 -t utf-8"),
        ("x.csv", b"prompt;chosen;rejected\na;b;c\n", "its cells are separated by ';'"),
        ("x.csv", b"prompt\tchosen\trejected\na\tb\tc\n", "tabs: name the file .tsv"),
    ],
)
def test_files_of_another_sort_are_recognised(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    source = find_source(DataInput.model_validate({"kind": "preferences", "path": name}), lambda _: tmp_path / name)
    problems: list[Any] = []
    validate_source(source, RowRules(data_kinds()["preferences"]), on_problem=problems.append)
    assert said in problems[0].message


def test_there_are_forty() -> None:
    assert len(FILES) >= 40


def test_the_command_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + _pair(prompt="", chosen="\x1b[2J\x07") * 30)
    assert main(["data", "validate", str(path), "--max-shown", "2"]) == 3
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith(f"{path}:2: prompt: is empty → ")
    assert "… and 28 more" in out
    assert "empty_prompt" in out
    assert "\x1b" not in out
    assert err == ""


def test_json_holds_every_problem_and_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD * 2 + _pair(chosen="") + _pair(id=True))
    assert main(["data", "validate", str(path), "--kind", "preferences", "--json", "--check", "empty_completion=drop"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert [(problem["line"], problem["reason"], problem["action"]) for problem in told["problems"]] == [
        (3, "empty_completion", "drop"),
        (4, "wrong_type", "error"),
    ]
    assert (told["rows_in"], told["rows_out"], told["errors"], told["usable"]) == (4, 2, 1, False)
    assert {check["name"]: check["count"] for check in told["checks"]} == {
        "wrong_type": 1,
        "empty_completion": 1,
        "repeated_rows": 1,
        "repeated_prompts": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--check", "repeated_row=drop"], 2, "did you mean repeated_rows"),
        (["--check", "not_json=keep"], 2, "cannot be 'keep'"),
        (["--check", "special_tokens=drop"], 2, "needs a model"),
        (["--check", "not_json"], 2, "NAME=error"),
        (["--max-tokens", "5"], 2, "--model"),
    ],
)
def test_impossible_wishes(
    arguments: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD)
    assert main(["data", "validate", str(path), *arguments]) == code
    assert told in capsys.readouterr().err


def test_a_kind_in_doubt_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"question,answer\na,b\n")
    assert main(["data", "validate", str(path)]) == 3
    assert "instructions or prompts" in capsys.readouterr().err
    assert main(["data", "validate", str(path), "--kind", "prompts"]) == 0


def test_rows_of_another_kind_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD)
    assert main(["data", "validate", str(path), "--kind", "instructions"]) == 3
    assert capsys.readouterr().out.endswith("\nthis looks like preferences: write --kind preferences\n")
    assert main(["data", "validate", str(path), "--kind", "preferences"]) == 0
    assert "looks like" not in capsys.readouterr().out
