"""YAML as plain values with positions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config.source import MAX_BYTES, MAX_DEPTH, parse_text, read_document
from align.errors import RecipeError


def value_of(text: str) -> Any:
    return parse_text(text, label="x").value


def problem_of(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_text(text, label="x")
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.e-5", 1e-5),
        ("1E-5", 1e-5),
        ("-1e3", -1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("12", 12),
        ("-0", 0),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_of_the_core_schema(text: str, value: Any) -> None:
    read = value_of(f"a: {text}")["a"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "on", "2024-01-01", "1:30", "1_000", "0b11", "1e", ".", "e5", "1.2.3", "<<", "'1e-5'", '"3"']
)
def test_what_stays_text(text: str) -> None:
    assert value_of(f"a: {text}")["a"] == text.strip("'\"")


def test_infinities_and_nan_are_numbers() -> None:
    read = value_of("[.inf, -.inf, .nan]")
    assert read[:2] == [math.inf, -math.inf]
    assert math.isnan(read[2])


def test_numbers_of_absurd_length_stay_text() -> None:
    assert value_of("a: " + "9" * 5000)["a"] == "9" * 5000


def test_positions_of_keys_and_values() -> None:
    document = parse_text("a: 1\n한국어: {b: [x,  y]}\nc:\n  - d: 2\n", label="r.yaml")
    assert str(document.key_position(("a",))) == "r.yaml:1:1"
    assert str(document.value_position(("a",))) == "r.yaml:1:4"
    assert str(document.key_position(("한국어", "b"))) == "r.yaml:2:7"
    assert str(document.value_position(("한국어", "b", 1))) == "r.yaml:2:15"
    assert str(document.value_position(("c", 0, "d"))) == "r.yaml:4:8"


def test_what_has_no_position_is_where_its_surroundings_are() -> None:
    document = parse_text("a:\n  b: 1\n", label="r.yaml")
    assert str(document.value_position(("a", "missing"))) == "r.yaml:1:1"
    assert str(document.key_position(("nothing", "at", "all"))) == "r.yaml:1:1"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "x:3:1: the key 'a' is here twice; the first is at x:1:1"),
        ("a:\n\tb: 1", "x:2:1: a tab; YAML is indented with spaces"),
        ("a: b: c", "x:1:5: mapping values are not allowed here"),
        ("a: *b", "x:1:4: anchors and aliases (*b) are not used in recipes"),
        ("a: &b 1", "x:1:4: anchors and aliases (&b) are not used in recipes"),
        ("a: !!python/object:os.system 1", "x:1:4: tags (tag:yaml.org,2002:python/object:os.system) are not used in recipes"),
        ("a: !x {b: 1}", "x:1:4: tags (!x) are not used in recipes"),
        ("a: 1\n---\nb: 2", "x:2:1: a second document starts here ('---'); a file holds one"),
        ("5: a", "x:1:1: a key must be text, got '5'"),
        ("? [a]\n: b", "x:1:3: a key must be text, got a list or mapping"),
        ("a: 1\nb:2\nc: 3", "x:2:1: a space is missing behind 'b:'"),
        ("a: 1\nb： 2\nc: 3", "x:2:1: expected 'key: value'"),
        ("a: {b: 1\nc: 3", "x:1:4: this { is not closed"),
        ("a: [1, 2", "x:1:4: this [ is not closed"),
        ("a: \x01", "x:1:4: the character U+0001 is not allowed in YAML"),
    ],
)
def test_refusals_say_where(text: str, problem: str) -> None:
    assert problem_of(text) == problem


@pytest.mark.parametrize(
    "text", ["a: [1", "a: {b", 'a: "x', "a: 'x", "a: @x", "a: 1\n b: 2", "- a\nb: c", "a: |x\n  y", "%YAML 1.1"]
)
def test_syntax_errors_have_a_position_and_advice(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^x:\d+:\d+: ") as caught:
        parse_text(text, label="x")
    assert caught.value.hint


def test_billion_laughs_and_deep_nesting_are_refused() -> None:
    laughs = "a: &a [x]\n" + "".join(f"b{index}: [*a, *a]\n" for index in range(20))
    assert "anchors" in problem_of(laughs)
    assert f"deeper than {MAX_DEPTH}" in problem_of("[" * 100_000)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cases = {"missing.yaml": "there is no such file", "folder": "this is a folder", "large.yaml": "larger than 1 MiB"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, problem in cases.items():
        with pytest.raises(RecipeError, match=problem):
            read_document(tmp_path / name, label=name)


def test_not_utf8_says_which_byte(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("이름: 가\n".encode() + "b: 값".encode("euc-kr"))
    with pytest.raises(RecipeError, match=r"^a.yaml:2:4: byte 0xb0 is not UTF-8"):
        read_document(tmp_path / "a.yaml", label="a.yaml")


@pytest.mark.parametrize(("encoding", "said"), [("cp949", "the file may be CP949"), ("utf-16", "the file is UTF-16")])
def test_other_encodings_are_recognised(tmp_path: Path, encoding: str, said: str) -> None:
    (tmp_path / "a.yaml").write_bytes("# 이름\nname: a\n".encode(encoding))
    with pytest.raises(RecipeError, match=said):
        read_document(tmp_path / "a.yaml", label="a.yaml")


@pytest.mark.parametrize(("text", "hint"), [("a: {b: 1， c: 2}", "Write , in place of ，"), ("a: {b: ${B}}", "Variables")])
def test_advice_on_what_the_line_holds(text: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_text(text, label="x")
    assert (caught.value.hint or "").startswith(hint)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = read_document(tmp_path / "a.yaml", label="a.yaml")
    assert document.value == {"a": 1, "b": 2}
    assert str(document.value_position(("b",))) == "a.yaml:2:4"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_json_reads_as_itself(value: Any) -> None:
    assert value_of(json.dumps(value)) == value


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@` \n\t,?1.e\x00가", max_size=30))
def test_any_text_is_a_document_or_an_error_with_a_place(text: str) -> None:
    try:
        parse_text(text, label="x")
        message = None
    except RecipeError as error:
        message = error.message
    assert message is None or message.startswith("x:")
