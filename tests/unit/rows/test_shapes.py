"""How rows are recognised: every shape, what fits two, what the columns say, and labels that mean nothing."""

from __future__ import annotations

from typing import Any

import pytest

from align.errors import RecipeError
from align.rows import INSTRUCTIONS, PREFERENCES, PROMPTS, TEXT, data_kinds
from align.rows import row as row_module
from align.rows.problem import FieldProblem
from align.rows.row import RowRead, RowReader

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
NO = {"role": "assistant", "content": "No"}


def _read(kind: str, row: dict[str, Any], **columns: str) -> RowRead:
    return RowReader(data_kinds()[kind], columns, 1000).read(row)


def _fields(kind: str, row: dict[str, Any], **columns: str) -> dict[str, Any]:
    read = _read(kind, row, **columns)
    assert not read.problems, read.problems
    ((suffix, fields),) = read.parts
    assert suffix == "" and isinstance(fields, dict)
    return fields


def _problem(kind: str, row: dict[str, Any], **columns: str) -> tuple[str, str]:
    read = _read(kind, row, **columns)
    assert read.parts == ()
    return read.problems[0].field, read.problems[0].reason


class TestInstructions:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "Hi", "completion": "Hello"},
            {"Prompt": "Hi", "Response": "Hello"},
            {"messages": [USER, ASSISTANT]},
            {"conversation": [HUMAN, GPT]},
            {"conversations": [HUMAN, GPT]},
            {"messages": [{**USER, "from": None, "value": None}, {"role": None, "content": None, **GPT}]},
            {"instruction": "Hi", "output": "Hello"},
            {"instruction": "Hi", "input": " \n", "answer": "Hello"},
            {"Q": "Hi", "A": "Hello"},
            {"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": " Hello"},
            {"prompt": "only a title", "messages": [USER, ASSISTANT]},
            {"question": None, "answer": None, "prompt": "Hi", "completion": "Hello"},
        ],
    )
    def test_shapes_of_the_same_row(self, row: dict[str, Any]) -> None:
        assert _fields("instructions", row) == {"prompt": [USER], "completion": "Hello"}

    def test_the_input_follows_the_instruction(self) -> None:
        row = {"instruction": "Translate.", "input": "chat ", "output": "cat", "system_prompt": "Be short."}
        prompt = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Translate.\n\nchat "}]
        assert _fields("instructions", row) == {"prompt": prompt, "completion": "cat"}

    @pytest.mark.parametrize(
        ("row", "told"),
        [
            (
                {"prompt": "a", "completion": "b", "messages": [USER, ASSISTANT]},
                "prompt/completion (prompt, completion) and messages",
            ),
            (
                {"instruction": "a", "output": "b", "response": "c"},
                "alpaca (instruction, output) and alpaca (instruction, response)",
            ),
            ({"Q": "a", "q": "b", "a": "c"}, "question/answer (Q, a) and question/answer (q, a)"),
        ],
    )
    def test_what_fits_two_shapes_is_not_guessed(self, row: dict[str, Any], told: str) -> None:
        (problem,) = _read("instructions", row).problems
        assert problem.reason == "ambiguous_shape"
        assert told in problem.message

    def test_the_columns_decide(self) -> None:
        row = {"prompt": "a", "completion": "b", "messages": [USER, ASSISTANT]}
        assert _fields("instructions", row, messages="messages")["completion"] == "Hello"
        assert _fields(
            "instructions", {"prompt": "a", "instruction": "b", "output": "c"}, prompt="instruction", completion="output"
        )

    def test_an_id_mapped_leaves_the_shape_to_be_recognised(self) -> None:
        read = _read("instructions", {"key": 7, "question": "a", "answer": "b"}, id="key")
        assert (read.id, read.unused, len(read.parts)) == ("7", (), 1)

    def test_what_looks_like_an_id_is_none(self) -> None:
        read = _read("instructions", {"question_id": 7, "question": "a", "answer": "b"})
        assert (read.id, read.unused) == (None, ("question_id",))

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ({"instruction": "a", "input": 3, "output": "b"}, ("input", "wrong_type")),
            ({"instruction": "a", "input": "x" * 999, "output": "b"}, ("prompt", "too_long")),
            ({"conversations": [HUMAN, {"from": "function_call", "value": "x"}]}, ("messages", "bad_roles")),
            ({"conversations": [HUMAN]}, ("messages", "bad_roles")),
            (
                {"system_prompt": "s", "prompt": [{"role": "system", "content": "t"}, USER], "completion": "b"},
                ("system", "bad_roles"),
            ),
            ({"question": "a"}, ("completion", "missing_field")),
        ],
    )
    def test_unusable_rows(self, row: dict[str, Any], problem: tuple[str, str]) -> None:
        assert _problem("instructions", row) == problem


class TestPreferences:
    @pytest.mark.parametrize(
        "row",
        [
            {"question": "Hi", "chosen": "Hello", "rejected": "No"},
            {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "No"},
            {"chosen": [HUMAN, GPT], "rejected": [USER, NO]},
            {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " No"},
            {"input": "Hi", "output_1": "No", "output_2": "Hello", "label": 2},
            {"prompt": "Hi", "output_1": "Hello", "output_2": "No", "label": "1"},
            {"prompt": "Hi", "response_0": "Hello", "response_1": "No", "preference": 0},
            {"prompt": "Hi", "response_0": "No", "response_1": "Hello", "preference": 1.0},
            {"question": "Hi", "answer_A": "Hello", "answer_B": "No", "winner": "a"},
            {"prompt": "Hi", "completion_a": "No", "completion_b": "Hello", "winner": "model_b"},
            {"prompt": "Hi", "completion_a": "No", "completion_b": "Hello", "winner": "completion_b"},
            {"conversation_a": [USER, ASSISTANT], "conversation_b": [USER, NO], "winner": "A"},
        ],
    )
    def test_shapes_of_the_same_pair(self, row: dict[str, Any]) -> None:
        scores = {"chosen_score": None, "rejected_score": None}
        assert _fields("preferences", row) == {"prompt": [USER], "chosen": "Hello", "rejected": "No", **scores}

    @pytest.mark.parametrize("label", [0, 3, "A", "first", True, [1], 1.5, "output"])
    def test_a_label_of_another_meaning_is_an_error(self, label: Any) -> None:
        assert _problem("preferences", {"prompt": "a", "output_1": "b", "output_2": "c", "label": label}) == (
            "label",
            "wrong_type",
        )

    @pytest.mark.parametrize("label", [1, 2, 0])
    def test_numbers_do_not_label_a_and_b(self, label: int) -> None:
        assert _problem("preferences", {"prompt": "a", "output_a": "b", "output_b": "c", "label": label}) == (
            "label",
            "wrong_type",
        )

    def test_a_label_of_columns_that_were_mapped(self) -> None:
        row = {"p": "Hi", "left": "No", "right": "Hello", "better": "right"}
        fields = _fields("preferences", row, prompt="p", completion_a="left", completion_b="right", label="better")
        assert (fields["chosen"], fields["rejected"]) == ("Hello", "No")

    @pytest.mark.parametrize("label", ["tie", "Tie (bothbad)"])
    def test_a_tie_gives_no_pair(self, label: str) -> None:
        assert _problem("preferences", {"prompt": "a", "output_1": "b", "output_2": "c", "label": label}) == ("label", "tie")

    def test_three_completions_and_a_label_are_ambiguous(self) -> None:
        row = {"prompt": "a", "output_0": "b", "output_1": "c", "output_2": "d", "label": 1}
        assert _problem("preferences", row) == ("", "ambiguous_shape")

    def test_of_a_list_the_best_meets_each_of_the_others(self) -> None:
        read = _read(
            "preferences", {"id": "x", "prompt": "Hi", "completions": ["c", "a", "b", "A", "a"], "scores": [1, 3, 2, 3, 0]}
        )
        told = [
            (suffix, part.reason if isinstance(part, FieldProblem) else (part["chosen"], part["rejected"]))
            for suffix, part in read.parts
        ]
        assert told == [("/1", ("a", "c")), ("/2", ("a", "b")), ("/3", "tie"), ("/4", "identical")]
        first = read.parts[0][1]
        assert isinstance(first, dict)
        assert (first["chosen_score"], first["rejected_score"], read.id) == (3.0, 1.0, "x")

    def test_a_ranking_is_best_first_and_the_lowest_rank_is_best(self) -> None:
        ranking = _read("preferences", {"prompt": "Hi", "ranking": ["a", "b", "c"]})
        ranks = _read("preferences", {"prompt": "Hi", "responses": ["b", "a", "c"], "ranks": [2, 1, 3]})
        assert ranking.parts == ranks.parts
        assert (
            _read("preferences", {"prompt": "Hi", "completions": ["a", "b", "c"]}, ranking="completions").parts == ranking.parts
        )

    @pytest.mark.parametrize(
        ("more", "problem"),
        [
            ({"answer": "a"}, ("chosen", "missing_field")),
            ({"completions": ["a", "b"]}, ("scores", "missing_field")),
            ({"completions": ["a", "b"], "scores": [1]}, ("scores", "wrong_type")),
            ({"completions": ["a", "b"], "scores": [1, float("nan")]}, ("scores 2", "nonfinite_score")),
            ({"completions": ["a", "b"], "scores": [1, None]}, ("scores 2", "wrong_type")),
            ({"completions": ["a"], "scores": [1]}, ("completions", "wrong_type")),
            ({"completions": ["a", ""], "scores": [1, 2]}, ("completions 2", "empty_completion")),
            ({"completions": ["a", "b"], "scores": [1, 2], "ranks": [1, 2]}, ("", "ambiguous_shape")),
        ],
    )
    def test_unusable_lists(self, more: dict[str, Any], problem: tuple[str, str]) -> None:
        assert _problem("preferences", {"prompt": "Hi", **more}) == problem


class TestLabelled:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "Hi", "completion": "Hello", "desirable": True},
            {"Prompt": "Hi", "Response": "Hello", "Label": 1},
            {"prompt": [USER], "completion": [ASSISTANT], "label": "True"},
            {"messages": [USER, ASSISTANT], "thumbs": "👍"},
            {"conversations": [HUMAN, GPT], "kto_tag": 1.0},
            {"instruction": "Hi", "input": "", "output": "Hello", "feedback": " Good "},
        ],
    )
    def test_shapes_of_the_same_row(self, row: dict[str, Any]) -> None:
        assert _fields("labelled", row) == {"prompt": [USER], "completion": "Hello", "desirable": True}

    @pytest.mark.parametrize("label", [False, 0, 0.0, "0", "FALSE", "bad", "thumbs_down", "👎"])
    def test_what_a_bad_completion_is_called(self, label: Any) -> None:
        assert _fields("labelled", {"prompt": "Hi", "completion": "Hello", "label": label})["desirable"] is False

    @pytest.mark.parametrize("label", [2, -1, 0.5, "", "neutral", [True]])
    def test_a_label_that_says_neither_is_a_problem(self, label: Any) -> None:
        read = _read("labelled", {"prompt": "Hi", "completion": "Hello", "label": label})
        assert [(problem.field, problem.reason) for problem in read.problems] == [("desirable", "wrong_type")]
        assert "must be true or false" in read.problems[0].message

    @pytest.mark.parametrize(
        "row", [{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, {"chosen": [USER, ASSISTANT], "rejected": [USER, NO]}]
    )
    def test_a_pair_is_a_good_and_a_bad_completion(self, row: dict[str, Any]) -> None:
        assert _read("labelled", row).parts == [
            ("/chosen", {"prompt": [USER], "completion": "Hello", "desirable": True}),
            ("/rejected", {"prompt": [USER], "completion": "No", "desirable": False}),
        ]

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ({"prompt": "Hi", "completion": "Hello"}, ("desirable", "missing_field")),
            ({"prompt": "Hi", "completion": "", "label": 1}, ("completion", "empty_completion")),
            ({"prompt": "Hi", "chosen": "No", "rejected": "No"}, ("chosen", "identical")),
            ({"chosen": [USER, ASSISTANT], "rejected": "No"}, ("prompt", "missing_field")),
        ],
    )
    def test_what_cannot_be_used(self, row: dict[str, Any], problem: tuple[str, str]) -> None:
        assert _problem("labelled", row) == problem


class TestPrompts:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "Hi", "reference": "7", "answer": "8"},
            {"prompt": "Hi", "solution": "7"},
            {"problem": "Hi", "answer": "7"},
            {"turns": ["Hi", "And then?"], "reference": ["7", "8"]},
            {"messages": [USER, ASSISTANT], "reference": "7"},
            {"conversations": [HUMAN], "answer": "7"},
        ],
    )
    def test_shapes_of_the_same_prompt(self, row: dict[str, Any]) -> None:
        assert _fields("prompts", row) == {"prompt": [USER], "reference": "7"}

    def test_two_references_are_not_guessed(self) -> None:
        row = {"problem": "Hi", "answer": "7", "solution": "3 + 4"}
        assert _problem("prompts", row) == ("", "ambiguous_shape")
        assert _fields("prompts", row, reference="answer")["reference"] == "7"

    def test_what_is_left_out_is_said(self) -> None:
        reader = RowReader(PROMPTS, {}, 100)
        for row in ({"turns": ["a", "b"]}, {"turns": ["a"]}, {"messages": [USER, ASSISTANT]}):
            assert not reader.read(row).problems
        assert reader.reading().notes(PROMPTS) == [
            "shapes: turns (turns) 2 rows, messages (messages) 1 rows",
            "1 prompts have further turns, left out: they cannot follow without an answer",
            "1 conversations end with an answer, which is no part of the prompt",
        ]


def test_empty_inputs_of_instructions_are_counted() -> None:
    reader = RowReader(INSTRUCTIONS, {}, 100)
    for given in ("", " ", "b", None):
        assert not reader.read({"instruction": "a", "input": given, "output": "c"}).problems
    assert reader.reading().notes(INSTRUCTIONS)[1:] == ["2 rows have an empty input: the instruction alone is their prompt"]


def test_the_plain_shape_needs_no_mention() -> None:
    reader = RowReader(PREFERENCES, {}, 100)
    reader.read({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": 1})
    assert reader.reading().notes(PREFERENCES) == []


def test_columns_of_no_shape() -> None:
    with pytest.raises(RecipeError, match="messages, prompt together"):
        RowReader(INSTRUCTIONS, {"prompt": "a", "messages": "b"}, 100)


def test_rows_whose_columns_were_forgotten_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_module, "MAX_PLANS", 2)
    reader = RowReader(TEXT, {}, 100)
    for number in range(5):
        reader.read({"text": "a", f"c{number}": 1})
    assert reader.reading().shapes == {"text": 5}
