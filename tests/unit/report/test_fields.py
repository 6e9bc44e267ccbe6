from typing import Any

import pytest

from align.records import Message, ScoredCandidate
from align.report.answers import align_answers
from align.report.fields import MAX_VALUES, MIN_PROMPTS, NO_VALUE, breakdown, prompt_fields
from align.report.results import Results

Rows = dict[str, list[ScoredCandidate]]


def test_a_group_has_the_numbers_of_a_comparison_on_its_prompts_alone(answers: Rows, results: Results, make_results: Any) -> None:
    table = align_answers(answers)
    values = ["first" if index < 25 else "second" for index in range(len(table.prompt_ids))]
    groups = breakdown(results, table, {"part": values})["part"]
    assert [(group.value, group.prompts) for group in groups] == [("second", 35), ("first", 25)]
    first = set(table.prompt_ids[:25])
    alone = make_results({name: [row for row in rows if row.prompt_id in first] for name, rows in answers.items()}, seed=17)
    for scorer, rows in groups[1].scores.items():
        assert {name: (score.mean, score.delta) for name, score in rows.items()} == {
            name: (model.scores[scorer].mean, model.scores[scorer].delta) for name, model in alone.models.items()
        }


def test_rare_values_are_counted_together(answers: Rows, results: Results) -> None:
    table = align_answers(answers)
    counts = [20, MIN_PROMPTS, MIN_PROMPTS - 1]
    values = [value for value, count in zip("abc", counts, strict=True) for _ in range(count)]
    values += [f"rare {index}" for index in range(len(table.prompt_ids) - len(values))]
    groups = breakdown(results, table, {"kind": values, "alone": ["x"] * 55 + ["y"] * 5})
    assert [(group.value, group.prompts) for group in groups["kind"]] == [("a", 20), ("b", 10), ("22 other values", 30)]
    assert "alone" not in groups, "one value of many prompts is nothing to compare"
    assert len(groups["kind"]) <= MAX_VALUES + 1


def test_the_single_other_value_keeps_its_name(answers: Rows, results: Results) -> None:
    groups = breakdown(results, align_answers(answers), {"kind": ["a"] * 30 + ["b"] * 27 + ["c"] * 3})
    assert [group.value for group in groups["kind"]] == ["a", "b", "c"]


def test_methods_are_rows_and_best_of_n_is_left_out(many: tuple[Results, Rows]) -> None:
    results, answers = many
    groups = breakdown(results, align_answers(answers), {"part": ["x", "y"] * 30})["part"]
    assert list(groups[0].scores["gold"]) == [name for name in results.models_baseline_first if name in results.trained_rows]


def test_only_fields_in_which_prompts_differ(answers: Rows) -> None:
    rows = answers["sft"][:4]
    system = Message(role="system", content="짧게 답해 주세요.")
    rows = [
        rows[0].model_copy(update={"reference": "a"}),
        rows[1],
        rows[2].model_copy(update={"prompt": [system, *rows[2].prompt]}),
        rows[3].model_copy(update={"prompt": [Message(role="user", content="Why is the sky blue at noon and red later?")]}),
    ]
    assert prompt_fields(align_answers({"sft": rows}), {}) == {
        "language": ["ko", "ko", "ko", "en"],
        "messages": ["1", "1", "2", "1"],
        "system prompt": ["no", "no", "yes", "no"],
        "reference": ["a", NO_VALUE, NO_VALUE, NO_VALUE],
    }


def test_a_scorer_without_a_number_in_a_group_is_absent(make_candidate: Any, make_results: Any) -> None:
    def rows(shift: float) -> list[ScoredCandidate]:
        return [make_candidate(f"p{n}", scores={"gold": None if n < 10 else shift + n}) for n in range(20)]

    answers = {"sft": rows(0.0), "dpo": rows(1.0)}
    groups = breakdown(make_results(answers), align_answers(answers), {"half": ["none"] * 10 + ["some"] * 10})["half"]
    assert {group.value: list(group.scores) for group in groups} == {"none": [], "some": ["gold"]}
    delta = groups[1].scores["gold"]["dpo"].delta
    assert delta is not None
    assert delta.mean == pytest.approx(1.0)


def test_columns_of_the_file_come_first_and_unique_ones_are_left_out(answers: Rows) -> None:
    table = align_answers(answers)
    columns = {
        prompt_id: {"category": ("writing", "math")[index % 2], "number": str(index), "language": "한국어" if index else "영어"}
        for index, prompt_id in enumerate(table.prompt_ids[:-1])
    }
    fields = prompt_fields(table, columns)
    assert list(fields) == ["category", "language"]
    assert fields["category"][:2] + fields["category"][-1:] == ["writing", "math", NO_VALUE]
    assert set(fields["language"]) == {"한국어", "영어", NO_VALUE}
