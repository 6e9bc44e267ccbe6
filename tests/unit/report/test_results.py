"""results.json from scored candidates: joined by id, checked, and equal to arithmetic done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from align.errors import DataError
from align.records import ScoredCandidate
from align.report.results import Results

Make = Callable[..., ScoredCandidate]
MakeResults = Callable[..., Results]


def rows(make: Make, gold: Mapping[str, float | None], **fields: object) -> list[ScoredCandidate]:
    return [make(prompt_id, scores={"gold": score}, **fields) for prompt_id, score in gold.items()]


def test_means_and_differences_by_hand(make_candidate: Make, make_results: MakeResults) -> None:
    results = make_results(
        {
            "sft": rows(make_candidate, {"p1": 0.0, "p2": 1.0, "p3": 2.0}),
            "dpo": rows(make_candidate, {"p1": 1.0, "p2": 3.0, "p3": 2.0}),
        }
    )
    baseline, dpo = results.models["sft"].scores["gold"], results.models["dpo"].scores["gold"]
    assert baseline.mean == 1.0
    assert baseline.delta is None
    assert results.models["sft"].win_rate is None
    assert dpo.mean == 2.0
    assert dpo.delta is not None
    assert dpo.delta.mean == 1.0
    assert dpo.delta.ci95[0] <= 1.0 <= dpo.delta.ci95[1]
    # won, won, tie
    assert results.models["dpo"].win_rate is not None
    assert results.models["dpo"].win_rate["gold"].mean == pytest.approx(2.5 / 3)
    assert results.ranking["gold"].order == ["dpo", "sft"]
    assert results.ranking["gold"].difference == dpo.delta
    assert results.prompts == 3


def test_answers_are_joined_by_id_whatever_their_order(make_candidate: Make, make_results: MakeResults) -> None:
    gold = {f"p{number}": float(number % 7) for number in range(40)}
    better = {prompt_id: score + 0.5 for prompt_id, score in gold.items()}
    sft, dpo = rows(make_candidate, gold), rows(make_candidate, better)
    straight = make_results({"sft": sft, "dpo": dpo})
    assert make_results({"sft": sft, "dpo": dpo[::-1]}) == straight
    # The difference is 0.5 on every prompt; joined by position it would not be.
    delta = straight.models["dpo"].scores["gold"].delta
    assert delta is not None
    assert delta.ci95 == pytest.approx((0.5, 0.5))


def test_kl_is_joined_by_id_and_complete(make_candidate: Make, make_results: MakeResults) -> None:
    answers = {name: rows(make_candidate, {"p1": 0.0, "p2": 1.0}) for name in ("sft", "dpo")}
    results = make_results(answers, kl_to_baseline={"dpo": {"p2": 3.0, "p1": 1.0}})
    assert results.models["dpo"].kl_to_baseline is not None
    assert results.models["dpo"].kl_to_baseline.mean == 2.0
    assert results.models["sft"].kl_to_baseline is None
    with pytest.raises(DataError, match="no finite KL value for 1 prompts, the first is 'p2'"):
        make_results(answers, kl_to_baseline={"dpo": {"p1": 1.0}})


def test_candidates_of_a_prompt_are_averaged_before_the_statistics(make_candidate: Make, make_results: MakeResults) -> None:
    def two(first: float, second: float | None) -> list[ScoredCandidate]:
        return [make_candidate("p1", scores={"gold": score}, index=index) for index, score in ((1, second), (0, first))]

    results = make_results({"sft": two(1.0, 3.0), "dpo": two(4.0, None)})
    assert results.num_candidates == 2
    assert results.models["sft"].scores["gold"].mean == 2.0
    assert results.models["dpo"].scores["gold"].mean == 4.0
    assert results.models["dpo"].scores["gold"].nonfinite == 0


def test_a_prompt_without_a_score_leaves_every_model_and_is_counted(make_candidate: Make, make_results: MakeResults) -> None:
    results = make_results(
        {
            "sft": rows(make_candidate, {"p1": 1.0, "p2": 100.0, "p3": 2.0}),
            "dpo": rows(make_candidate, {"p1": 2.0, "p2": None, "p3": 3.0}),
        }
    )
    assert results.models["sft"].scores["gold"].mean == 1.5
    assert results.models["dpo"].scores["gold"].mean == 2.5
    assert [results.models[name].scores["gold"].nonfinite for name in ("sft", "dpo")] == [0, 1]
    assert results.ranking["gold"].prompts == 2
    assert results.prompts == 3


def test_tokens_and_ends_by_hand(make_candidate: Make, make_results: MakeResults) -> None:
    short = make_candidate("p1", scores={"gold": 0.0}, completion="a", finish="stop")
    long = make_candidate("p2", scores={"gold": 0.0}, completion="a b c d e", finish="length")
    model = make_results({"sft": [short, long]}).models["sft"]
    assert model.completion_tokens.mean == 4.0
    assert model.completion_tokens.p50 == 4.0
    assert model.completion_tokens.p95 == pytest.approx(5.8)
    assert model.eos_share == 0.5


def test_models_that_cannot_be_compared_are_refused(make_candidate: Make, make_results: MakeResults) -> None:
    sft = rows(make_candidate, {"p1": 1.0, "p2": 2.0})
    other_text = [row.model_copy(update={"prompt": sft[1].prompt}) for row in sft]
    cases = {
        "'dpo' has no answer to 1 prompts that 'sft' answered, the first is 'p2'": sft[:1],
        "'dpo' answered 1 prompts that 'sft' did not, the first is 'p3'": [*sft, *rows(make_candidate, {"p3": 0.0})],
        "'dpo', prompt 'p1': 2 candidates, expected 1": [*sft, *rows(make_candidate, {"p1": 0.0}, index=1)],
        "two rows for prompt 'p1', candidate 0": [*sft, sft[0]],
        r"'dpo', prompt 'p1': scores of \['rm'\], expected \['gold'\]": [
            make_candidate(name, scores={"rm": 0.0}) for name in ("p1", "p2")
        ],
        "prompt 'p1' has another text for 'dpo' than for 'sft'": other_text,
        "model 'dpo' has no answers": [],
    }
    for message, dpo in cases.items():
        with pytest.raises(DataError, match=message):
            make_results({"sft": sft, "dpo": dpo})


def test_a_scorer_without_a_single_common_score_is_refused(make_candidate: Make, make_results: MakeResults) -> None:
    with pytest.raises(DataError, match="on none of the 2 prompts did every model get a finite score"):
        make_results({"sft": rows(make_candidate, {"a": 1.0, "b": None}), "dpo": rows(make_candidate, {"a": None, "b": 1.0})})


def test_the_baseline_must_be_compared(make_candidate: Make, make_results: MakeResults) -> None:
    with pytest.raises(DataError, match="the baseline 'base' is not among the compared models: sft"):
        make_results({"sft": rows(make_candidate, {"p1": 1.0})}, baseline="base")


def test_results_survive_json_and_a_second_computation(results: Results, answers: dict[str, list[ScoredCandidate]]) -> None:
    text = json.dumps(results.to_json(), allow_nan=False)
    assert Results.from_json(json.loads(text)) == results
    assert list(results.to_json())[:6] == ["schema_version", "recipe", "command", "seed", "baseline", "prompts"]


def test_every_field_of_the_schema_is_described() -> None:
    schema = Results.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["description"]
        for name, field in definition["properties"].items():
            assert field.get("description"), name
