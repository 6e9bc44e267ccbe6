"""Every row becomes a record or a named problem; texts stay as they are; what is odd is counted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.data.reader import RawProblem, RawRow
from align.data.source import Source, SourceFile
from align.data.validation import Problem, RowRules, Summary, collect_rows
from align.data.validation.block import Block
from align.errors import RecipeError
from align.records import Drop, Record
from align.rows import TEXT, data_kinds


class _Validated(NamedTuple):
    summary: Summary
    rows: list[Record]
    drops: list[Drop]
    problems: list[Problem]


def _validate_numbered(raw: list[RawRow], rules: RowRules, columns: dict[str, str], name: str) -> _Validated:
    source = Source((SourceFile(Path(name), name, columns),), name)
    problems: list[Problem] = []
    with collect_rows(source, rules, on_problem=problems.append, blocks=[Block(0, raw)]) as collection:
        rows, drops = list(collection.records()), list(collection.drops())
    return _Validated(collection.summary, rows, drops, sorted(problems, key=lambda problem: problem.seq))


def _validate(kind: str, *rows: Any, columns: dict[str, str] | None = None, max_characters: int = 1000) -> _Validated:
    rules = RowRules(data_kinds()[kind], max_characters)
    return _validate_numbered(list(enumerate(rows, start=1)), rules, columns or {}, "data/x.jsonl")


def _reasons(kind: str, *rows: Any, **options: Any) -> list[str]:
    return [drop.drop_reason for drop in _validate(kind, *rows, **options).drops]


def _record(kind: str, row: dict[str, Any], **options: Any) -> Any:
    result = _validate(kind, row, **options)
    assert not result.problems
    return result.rows[0]


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


class TestInstructions:
    def test_a_text_prompt_is_one_user_message(self) -> None:
        record = _record("instructions", {"prompt": " Hi\n", "completion": "\tHello "})
        assert [message.model_dump() for message in record.prompt] == [{"role": "user", "content": " Hi\n"}]
        assert (record.completion, record.line) == ("\tHello ", 1)

    @pytest.mark.parametrize(
        "row",
        [
            {"messages": [SYSTEM, USER, ASSISTANT]},
            {"prompt": [SYSTEM, USER], "completion": "Hello"},
            {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
            {"prompt": None, "messages": [SYSTEM, USER, ASSISTANT]},
        ],
    )
    def test_shapes_of_the_same_conversation(self, row: dict[str, Any]) -> None:
        record = _record("instructions", row)
        assert [message.role for message in record.prompt] == ["system", "user"]
        assert record.completion == "Hello"

    def test_columns(self) -> None:
        result = _validate("instructions", {"Q": "a", "A": "b", "label": "0"}, columns={"prompt": "Q", "completion": "A"})
        assert result.rows
        assert list(result.summary.unused) == ["label"]

    def test_columns_for_a_field_that_does_not_exist(self) -> None:
        with pytest.raises(RecipeError) as caught:
            _validate("instructions", {"prompt": "a"}, columns={"completon": "A"})
        assert "completon" in caught.value.message

    def test_a_missing_column_shows_what_there_is(self) -> None:
        result = _validate("instructions", {"prompt": "a", "answer": "b"}, columns={"completion": "A"})
        told = "data/x.jsonl:1: completion: is missing (column 'A'); the row has: prompt, answer"
        assert result.problems[0].render() == told

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"completion": "b"}, "missing_field"),
            ({"prompt": "a", "completion": None}, "missing_field"),
            ({"prompt": "a", "completion": 3}, "wrong_type"),
            ({"prompt": ["a"], "completion": "b"}, "wrong_type"),
            ({"prompt": [], "completion": "b"}, "wrong_type"),
            ({"prompt": [{"speaker": "human", "value": "a"}], "completion": "b"}, "wrong_type"),
            ({"prompt": [{"role": "user", "content": [{"type": "text"}]}], "completion": "b"}, "wrong_type"),
            ({"prompt": " \n", "completion": "b"}, "empty_prompt"),
            ({"prompt": "a", "completion": "\u3000 "}, "empty_completion"),
            ({"messages": [ASSISTANT]}, "empty_prompt"),
            ({"prompt": "a", "completion": "\ud800"}, "lone_surrogate"),
            ({"prompt": "\udfff", "completion": "b"}, "lone_surrogate"),
            ({"prompt": "a", "completion": "b" * 1001}, "too_long"),
            (
                {"prompt": [{"role": "user", "content": "a" * 600}, ASSISTANT, USER | {"content": "a" * 600}], "completion": "b"},
                "too_long",
            ),
            ({"messages": [USER]}, "bad_roles"),
            ({"prompt": [USER, ASSISTANT], "completion": "b"}, "bad_roles"),
            ({"prompt": [USER, USER], "completion": "b"}, "bad_roles"),
            ({"prompt": [USER, ASSISTANT, ASSISTANT, USER], "completion": "b"}, "bad_roles"),
            ({"prompt": [USER, SYSTEM, USER], "completion": "b"}, "bad_roles"),
            ({"prompt": [{"role": "tool", "content": "a"}], "completion": "b"}, "bad_roles"),
            ({"prompt": "a", "completion": [USER, ASSISTANT]}, "prompt_differs"),
        ],
    )
    def test_unusable_rows(self, row: dict[str, Any], reason: str) -> None:
        assert _reasons("instructions", row) == [reason]


class TestPreferences:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
            {"prompt": "Hi", "chosen": [ASSISTANT], "rejected": [USER, ASSISTANT | {"content": "No"}]},
            {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT | {"content": "No"}]},
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        ],
    )
    def test_shapes_of_the_same_pair(self, row: dict[str, Any]) -> None:
        record = _record("preferences", row)
        assert [message.model_dump() for message in record.prompt] == [USER]
        assert (record.chosen, record.rejected) == ("Hello", "No")

    def test_scores(self) -> None:
        row = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": "1.5", "rejected_score": -2}
        record = _record("preferences", row)
        assert (record.chosen_score, record.rejected_score) == (1.5, -2.0)

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"prompt": "a", "chosen": "b", "rejected": "b"}, "identical"),
            ({"prompt": "a", "chosen": "", "rejected": "b"}, "empty_completion"),
            ({"chosen": "b", "rejected": "c"}, "missing_field"),
            ({"prompt": "a", "chosen": "b"}, "missing_field"),
            ({"prompt": "Hi", "chosen": [USER | {"content": "Ho"}, ASSISTANT], "rejected": "b"}, "prompt_differs"),
            ({"chosen": [USER, ASSISTANT], "rejected": [USER | {"content": "Ho"}, ASSISTANT]}, "prompt_differs"),
            ({"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, "empty_completion"),
            ({"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, "bad_roles"),
            ({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": float("nan")}, "nonfinite_score"),
            ({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": True}, "wrong_type"),
            ({"prompt": "a", "chosen": "b", "rejected": "c", "rejected_score": "high"}, "wrong_type"),
        ],
    )
    def test_unusable_rows(self, row: dict[str, Any], reason: str) -> None:
        assert _reasons("preferences", row) == [reason]

    def test_a_transcript_keeps_its_texts(self) -> None:
        same = "\n\nHuman:  a \n\nAssistant: b\n\nHuman: c"
        record = _record("preferences", {"chosen": f"{same}\n\nAssistant: d \n", "rejected": f"{same}\n\nAssistant: e"})
        assert [message.content for message in record.prompt] == [" a ", "b", "c"]
        assert record.chosen == "d \n"

    def test_a_transcript_is_a_conversation_where_columns_say_so(self) -> None:
        row = {"messages": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"}
        answer, prompt = _record("instructions", row), _record("prompts", row)
        assert [message.content for message in answer.prompt] == ["a", "b", "c"] == [part.content for part in prompt.prompt]
        assert answer.completion == "d"
        assert _reasons("instructions", {"messages": "\n\nHuman: a"}) == ["bad_roles"]


class TestIds:
    def test_made_from_the_content_so_that_no_other_row_renames_it(self) -> None:
        good, digits = {"text": "a"}, hashlib.sha256(b'{"text":"a"}').hexdigest()[:16]
        result = _validate("text", {"text": "b"}, good, RawProblem("not_json", "…"), {"text": ""}, good, good)
        assert [row.id for row in result.rows[1:]] == [digits, f"{digits}-2", f"{digits}-3"]
        assert [drop.id for drop in result.drops] == ["row-00003", "row-00004"]

    def test_an_id_that_is_given_is_not_made_again(self) -> None:
        digits = hashlib.sha256(b'{"text":"a"}').hexdigest()[:16]
        result = _validate("text", {"text": "a"}, {"id": digits, "text": "a"})
        assert [row.id for row in result.rows] == [f"{digits}-row-00001", digits]

    def test_own_ids_may_be_numbers(self) -> None:
        assert [row.id for row in _validate("text", {"id": 7, "text": "a"}, {"id": "x", "text": "b"}).rows] == ["7", "x"]

    def test_an_id_belongs_to_its_first_row(self) -> None:
        result = _validate(
            "text", {"id": "x", "text": ""}, {"id": "x", "text": "b"}, {"id": "y", "text": "c"}, {"id": "y", "text": ""}
        )
        assert [row.model_dump()["text"] for row in result.rows] == ["c"]
        assert result.summary.dropped == {"empty_text": 2, "duplicate_id": 1}
        assert [problem.render() for problem in result.problems if problem.reason == "duplicate_id"] == [
            "data/x.jsonl:2: id: 'x' is also the id of line 1",
            "data/x.jsonl:4: id: 'y' is also the id of line 3",
        ]

    @pytest.mark.parametrize(("value", "reason"), [(True, "wrong_type"), (1.5, "wrong_type"), ("\ud800", "lone_surrogate")])
    def test_unusable_ids(self, value: Any, reason: str) -> None:
        assert _reasons("text", {"id": value, "text": "a"}) == [reason]


def test_a_row_with_several_faults_is_one_drop_that_names_them_all() -> None:
    result = _validate("preferences", {"prompt": "", "chosen": "", "rejected": 4})
    assert [problem.reason for problem in result.problems] == ["empty_prompt", "empty_completion", "wrong_type"]
    (drop,) = result.drops
    assert drop.drop_reason == "empty_prompt"
    assert drop.detail.count("data/x.jsonl:1: ") == 3


def test_rows_of_a_list_are_named_by_element_and_pointer() -> None:
    rows: list[Any] = [{"text": ""}, {"text": "a"}, {"words": "b"}, RawProblem("not_an_object", "must be a JSON object")]
    result = _validate_numbered([(1, row) for row in rows], RowRules(TEXT), {}, "x.json")
    assert [problem.render() for problem in result.problems] == [
        "x.json:1: element 1 (/0/text): text: is empty",
        "x.json:1: element 3 (/2/text): text: is missing; the row has: words",
        "x.json:1: element 4 (/3): must be a JSON object",
    ]
    assert result.drops[0].detail == "x.json:1: element 1 (/0/text): text: is empty"


def test_findings_in_a_list_count_elements() -> None:
    result = _validate_numbered([(1, {"text": text}) for text in ("a ", "b", "b", "c ")], RowRules(TEXT), {}, "x.json")
    notes = result.summary.notes()
    assert "a text that ends in white space: 2 (element 1, 4)" in notes
    assert "an earlier row repeated entirely: 1 (element 3)" in notes
    rules = RowRules(TEXT, checks={"repeated_rows": "drop"})
    (drop,) = _validate_numbered([(1, {"text": text}) for text in ("a", "b", "b")], rules, {}, "x.json").drops
    assert drop.detail == "x.json: element 3: repeats element 2 entirely"


def test_what_align_wrote_is_read_back_without_a_finding() -> None:
    row = _record("prompts", {"id": "a", "prompt": "x", "reference": "r"}).model_dump()
    result = _validate("prompts", row)
    assert result.rows[0].model_dump() == row
    assert not result.summary.unused


class TestFindings:
    def test_repetitions_and_contradictions(self) -> None:
        rows = [("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"), ("a", "3")]
        result = _validate("instructions", *({"prompt": prompt, "completion": text} for prompt, text in rows))
        assert result.summary.counts() == {"repeated_rows": 1, "conflicting_completions": 1, "repeated_prompts": 3}
        assert "the prompt of an earlier row: 3 (line 2, 3, 5)" in result.summary.notes()
        assert "a prompt with several different completions: 1 (line 3)" in result.summary.notes()

    def test_characters(self) -> None:
        texts = ["fine\n\tfine", "ends ", "e\u0301", "nul\x00", "bell\x07", "가"]
        result = _validate("text", *({"text": text} for text in texts))
        assert result.summary.counts() == {"trailing_white_space": 1, "not_nfc": 1, "nul_character": 1, "control_characters": 1}
        assert [row.model_dump()["text"] for row in result.rows] == texts

    def test_pairs(self) -> None:
        pairs = [("long", "no"), ("no", "long"), ("no", "other")]
        result = _validate("preferences", *({"prompt": "a", "chosen": c, "rejected": r} for c, r in pairs))
        assert result.summary.counts() == {"repeated_prompts": 2, "conflicting_pairs": 1, "chosen_longer": 1}

    def test_unused_columns_that_look_like_labels(self) -> None:
        rows = [("a", "0"), ("a", "1"), ("b", "2 "), ("b", "2 ")]
        result = _validate("prompts", *({"prompt": prompt, "label": label} for prompt, label in rows))
        assert result.summary.counts()["conflicting:label"] == 1
        assert result.summary.counts()["trailing_white_space:label"] == 2

    def test_unused_keys_of_messages(self) -> None:
        assert _validate("prompts", {"prompt": [USER | {"name": "x"}]}).summary.unused == {"prompt.name": None}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["id", "prompt", "completion", "messages", "chosen", "rejected", "chosen_score", "reference", "text", "other"]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["instructions", "preferences", "prompts", "text"]),
    rows=st.lists(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=6), max_size=8),
)
def test_no_row_crashes_and_none_is_lost(kind: str, rows: list[dict[str, Any]]) -> None:
    result = _validate(kind, *rows)
    assert result.summary.rows_in == len(rows) == len(result.rows) + sum(result.summary.dropped.values())
    assert len({row.id for row in result.rows}) == len(result.rows)
    for row in result.rows:
        assert row.line is not None
        row.model_dump_json()
