"""Reading users' files: every format, and every way in which a file can be broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from align.data.reader import RawProblem, read_raw
from align.errors import DataError
from align.formats import json_list, lines


def _read(folder: Path, name: str, content: bytes | str) -> list[tuple[int, Any]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_raw(path))


def _reasons(rows: list[tuple[int, Any]]) -> list[tuple[int, str]]:
    return [(line, row.reason if isinstance(row, RawProblem) else "ok") for line, row in rows]


class TestJsonLines:
    def test_rows_have_their_physical_line(self, tmp_path: Path) -> None:
        rows = _read(tmp_path, "a.jsonl", '{"a": 1}\n\n   \n{"a": 2}')
        assert rows == [(1, {"a": 1}), (4, {"a": 2})]

    def test_byte_order_mark_and_crlf(self, tmp_path: Path) -> None:
        assert _read(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n') == [(1, {"a": 1}), (2, {"a": 2})]

    def test_a_line_separator_inside_a_text_is_no_line_break(self, tmp_path: Path) -> None:
        assert _read(tmp_path, "a.jsonl", '{"a": "x\u2028y\x85z"}\n') == [(1, {"a": "x\u2028y\x85z"})]

    def test_what_is_wrong_does_not_stop_the_reading(self, tmp_path: Path) -> None:
        lines = [b'{"a": "\xff"}', b"[1]", b'{"a": 1, "a": 2}', b'{"a"', b"[" * 50_000, b'{"a": ' + b"9" * 5000 + b"}", b"\x00"]
        rows = _read(tmp_path, "a.jsonl", b"\n".join([*lines, b'{"good": "\\u0000"}']))
        reasons = ["bad_encoding", "not_an_object", "not_json", "not_json", "not_json", "not_json", "not_json", "ok"]
        assert _reasons(rows) == list(enumerate(reasons, start=1))

    def test_a_huge_line_is_skipped_not_held(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
        rows = _read(tmp_path, "a.jsonl", '{"a": "' + "x" * 1000 + '"}\n{"a": 1}\n')
        assert _reasons(rows) == [(1, "too_long"), (2, "ok")]


class TestJson:
    def test_objects_have_the_line_they_start_on(self, tmp_path: Path) -> None:
        content = json.dumps([{"a": "x\ny"}, {"b": [1, {"c": 2}]}], indent=2)
        assert _read(tmp_path, "a.json", content) == [(2, {"a": "x\ny"}), (5, {"b": [1, {"c": 2}]})]

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_chunks_may_end_anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        monkeypatch.setattr(json_list, "_CHUNK_CHARACTERS", size)
        rows = [{"a": '한국어\n"\\', "n": -12.5e3}, {}, {"b": [None, True]}]
        content = "\ufeff \n" + json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        assert [row for _, row in _read(tmp_path, "a.json", content)] == rows

    def test_items_that_are_no_objects(self, tmp_path: Path) -> None:
        assert _reasons(_read(tmp_path, "a.json", '[12, "x",\n{"a": 1}]')) == [
            (1, "not_an_object"),
            (1, "not_an_object"),
            (2, "ok"),
        ]

    @pytest.mark.parametrize("content", ["", "  \n", "[]", "[ ]"])
    def test_no_rows(self, tmp_path: Path, content: str) -> None:
        assert _read(tmp_path, "a.json", content) == []

    @pytest.mark.parametrize(
        ("content", "line"),
        [('[{"a": 1},\n{"b": ', 2), ('[{"a": 1}\n{"b": 2}]', 2), ('[{"a": 1}] x', 1), ('[{"a": 1},]', 1), ('[{"a": 1}', 1)],
    )
    def test_broken_json_ends_the_file(self, tmp_path: Path, content: str, line: int) -> None:
        last_line, problem = _read(tmp_path, "a.json", content)[-1]
        assert (last_line, problem.reason, problem.ends_file) == (line, "not_json", True)

    def test_json_lines_under_the_wrong_name(self, tmp_path: Path) -> None:
        ((_, problem),) = _read(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')
        assert "name it .jsonl" in problem.message

    def test_bad_bytes_concern_their_row_only(self, tmp_path: Path) -> None:
        rows = _read(tmp_path, "a.json", b'[{"a": "\xff"},\n{"a": "\\udcff"}]')
        assert _reasons(rows) == [(1, "bad_encoding"), (2, "ok")]


class TestCsv:
    def test_a_row_has_the_line_it_starts_on(self, tmp_path: Path) -> None:
        rows = _read(tmp_path, "a.csv", 'Q,A\r\n"a\r\n""b""",c\r\n\r\nd,"e,f"\r\n')
        assert rows == [(2, {"Q": 'a\r\n"b"', "A": "c"}), (5, {"Q": "d", "A": "e,f"})]

    def test_byte_order_mark_tab_and_old_line_ends(self, tmp_path: Path) -> None:
        assert _read(tmp_path, "a.tsv", b"\xef\xbb\xbfQ\tA\r1\t2\r") == [(2, {"Q": "1", "A": "2"})]

    def test_nothing_is_trimmed(self, tmp_path: Path) -> None:
        assert _read(tmp_path, "a.csv", "Q, A\n x ,2  \n") == [(2, {"Q": " x ", " A": "2  "})]

    def test_what_is_wrong_does_not_stop_the_reading(self, tmp_path: Path) -> None:
        rows = _read(tmp_path, "a.csv", b'Q,A\none\n1,2,3\n"x"y,z\n\xb0\xa1,b\nc\x00,d\n')
        expected = ["wrong_columns", "wrong_columns", "not_csv", "bad_encoding", "ok"]
        assert _reasons(rows) == list(enumerate(expected, start=2))

    def test_an_open_quote_names_its_own_row_and_ends_the_file(self, tmp_path: Path) -> None:
        (_, (line, problem)) = _read(tmp_path, "a.csv", 'Q,A\n1,2\n"open,3\n4,5\n6,7\n')
        assert (line, problem.reason, problem.ends_file) == (3, "not_csv", True)

    def test_a_cell_longer_than_the_csv_module_likes(self, tmp_path: Path) -> None:
        ((_, row),) = _read(tmp_path, "a.csv", "Q,A\n" + "x" * 200_000 + ",b\n")
        assert len(row["Q"]) == 200_000

    @pytest.mark.parametrize(("header", "reason"), [(b"Q,Q", "wrong_columns"), (b"\xb0\xa1,A", "bad_encoding")])
    def test_an_unusable_header(self, tmp_path: Path, header: bytes, reason: str) -> None:
        ((line, problem),) = _read(tmp_path, "a.csv", header + b"\n1,2\n")
        assert (line, problem.reason, problem.ends_file) == (1, reason, True)


def test_text_has_one_row_per_line(tmp_path: Path) -> None:
    rows = _read(tmp_path, "a.txt", b" one \r\n\n\xffx\ntwo")
    assert (rows[0], rows[2]) == ((1, {"text": " one "}), (4, {"text": "two"}))
    assert _reasons(rows)[1] == (3, "bad_encoding")


class TestGzip:
    def test_every_format_may_be_compressed(self, tmp_path: Path) -> None:
        assert _read(tmp_path, "a.csv.gz", gzip.compress(b"Q\n1\n")) == [(2, {"Q": "1"})]

    def test_cut_short(self, tmp_path: Path) -> None:
        lines = b"".join(b'{"a": %d}\n' % number for number in range(5000))
        rows = _read(tmp_path, "a.jsonl.gz", gzip.compress(lines)[:-2000])
        problem = rows[-1][1]
        assert len(rows) > 1
        assert (problem.reason, problem.ends_file) == ("damaged_file", True)

    def test_not_compressed_at_all(self, tmp_path: Path) -> None:
        assert _reasons(_read(tmp_path, "a.jsonl.gz", '{"a": 1}')) == [(1, "damaged_file")]


@pytest.mark.parametrize(
    ("content", "told"),
    [("Q,A\n1,2".encode("utf-16"), "UTF-16"), (gzip.compress(b"Q", mtime=0), "gzip"), (b"PK\x03\x04rest", "office")],
)
def test_another_kind_of_file_is_recognised(tmp_path: Path, content: bytes, told: str) -> None:
    ((_, problem),) = _read(tmp_path, "a.csv", content)
    assert problem.reason == "bad_encoding"
    assert told in problem.message


@pytest.mark.parametrize(
    ("name", "told"), [("a.xlsx", "xlsx"), ("a.parquet.gz", "unpack it"), ("none", "(none)"), ("absent.jsonl", "cannot be read")]
)
def test_files_that_cannot_be_opened(tmp_path: Path, name: str, told: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError) as caught:
        list(read_raw(tmp_path / name))
    assert told in str(caught.value)
