import json
from typing import Any

import pytest

from align.records import ScoredCandidate
from align.report import viewer
from align.report.answers import align_answers
from align.report.results import Results
from align.report.viewer import group_cells, results_cells, to_json, viewer_data

Rows = dict[str, list[ScoredCandidate]]
PARITY = ("even", "odd")


def data_of(results: Results, answers: Rows) -> dict[str, Any]:
    table = align_answers(answers)
    return viewer_data(results, table, {"parity": [PARITY[index % 2] for index in range(len(table.prompt_ids))]}, {}, "gold")


@pytest.mark.parametrize("text", ["</script><script>", "<!--", "&amp;", "\u2028\u2029", "반쪽 \ud83d", '"\\', "\u202e\x00\x1b"])
def test_no_text_can_end_the_element_and_none_is_changed(text: str) -> None:
    safe = to_json({text: [text]})
    assert json.loads(safe) == {text: [text]}
    assert not set(safe) & set("<>&\u2028\u2029")
    safe.encode("utf-8")


def test_every_prompt_with_every_models_unrounded_scores(answers: Rows, results: Results) -> None:
    data = data_of(results, answers)
    assert len(data["prompts"]) == data["total"] == 60
    assert [model["name"] for model in data["models"]] == list(answers)
    for index, (prompt_id, messages, reference, of_models) in enumerate(data["prompts"]):
        for rows, (answer,) in zip(answers.values(), of_models, strict=True):
            row = rows[index]
            assert (prompt_id, reference) == (row.prompt_id, row.reference)
            assert messages == [["user", row.prompt[0].content]]
            assert answer == [row.completion, row.completion_tokens, row.finish_reason == "length", [*row.scores.values()]]
    assert data["fields"] == {"parity": {"values": ["even", "odd"], "counts": [30, 30], "of": [0, 1] * 30}}


def test_what_does_not_fit_is_left_out_evenly(answers: Rows, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data_of(results, answers)["prompts"]
    limit = len(to_json(whole).encode()) // 2
    monkeypatch.setattr(viewer, "MAX_BYTES", limit)
    data = data_of(results, answers)
    assert 20 <= len(data["prompts"]) < 40
    assert len(to_json(data["prompts"]).encode()) <= limit + 100
    assert data["total"] == 60
    ids = [prompt[0] for prompt in data["prompts"]]
    assert (ids[0], ids[-1]) == ("prompt-000", "prompt-059")
    assert all(len(field["of"]) == len(ids) for field in data["fields"].values())


def test_seeds_of_a_method_are_there_but_only_the_first_is_shown(many: tuple[Results, Rows]) -> None:
    models = {model["name"]: model for model in data_of(*many)["models"]}
    assert [models[f"dpo_seed{seed}"]["shown"] for seed in (1, 2, 3)] == [True, False, False]
    assert {models[f"dpo_seed{seed}"]["row"] for seed in (1, 2, 3)} == {"dpo"}


def test_the_table_has_the_numbers_of_the_results(many: tuple[Results, Rows]) -> None:
    results, _ = many
    header, *rows = results_cells(results)
    assert all(len(row) == len(header) for row in rows)
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert cells.keys() == {*results.models, "dpo_seed1", "dpo_seed2", "dpo_seed3"}
    ppo, of_n = results.models["ppo"], results.models["sft best of 4"]
    assert ppo.scores["rm"].delta is not None
    assert (cells["ppo"]["rm mean"], cells["ppo"]["rm difference low"]) == (ppo.scores["rm"].mean, ppo.scores["rm"].delta.ci95[0])
    assert cells["ppo"]["completion tokens"] == ppo.completion_tokens.mean
    assert (cells["sft best of 4"]["kind"], cells["sft best of 4"]["KL bound (nats)"]) == ("best of n", of_n.kl_bound)
    assert cells["sft"]["rm difference"] is None
    intervals = ["difference", "difference low", "difference high"]
    assert group_cells({}) == [["field", "value", "prompts", "scorer", "model", "mean", *intervals]]
