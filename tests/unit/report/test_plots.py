"""The drawings: safe to put into a page, the same every time, one colour a model, and fit for Korean."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import pytest

from align.records import ScoredCandidate
from align.report.answers import align_answers
from align.report.figure import Plot, model_variable
from align.report.plots import length_histogram, score_histograms, score_scatters, training_curves
from align.report.results import Results

CURVE = [
    {"step": step, "epoch": step / 10, "loss": 1.0 / step, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.1 * step}
    for step in range(1, 20)
] + [{"step": 5, "eval_loss": 0.5}, {"step": 10, "eval_loss": 0.4}, {"step": 20, "train_loss": 0.3, "train_runtime": 9.0}]


@pytest.fixture(scope="module")
def plots(results: Results, answers: dict[str, list[ScoredCandidate]]) -> list[Plot]:
    table = align_answers(answers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of glyphs it lacks
        return [*score_scatters(results, table), *score_histograms(results, table), length_histogram(results, table)]


def test_there_is_one_drawing_per_question(plots: list[Plot]) -> None:
    assert [plot.title for plot in plots] == [
        "gold against rm",
        "Distribution of rm",
        "Distribution of gold",
        "Completion length",
    ]


def test_drawings_are_well_formed_and_load_nothing(plots: list[Plot]) -> None:
    for plot in plots:
        ElementTree.fromstring(plot.svg)
        assert "http" not in plot.svg
        assert "<style" not in plot.svg
        assert "#0a0" not in plot.svg, "a stand-in colour is left"
        assert "label0" not in plot.svg, "a stand-in text is left"


def test_every_model_has_its_name_and_colour_in_every_drawing(plots: list[Plot], results: Results) -> None:
    for plot in plots:
        for index, name in enumerate(results.models_baseline_first):
            assert f"var({model_variable(index)})" in plot.svg
            assert name in plot.svg or name in [series.label for series in plot.legend]


def test_drawings_are_the_same_every_time_and_their_ids_are_their_own(
    plots: list[Plot], results: Results, answers: dict[str, list[ScoredCandidate]]
) -> None:
    table = align_answers(answers)
    again = [*score_scatters(results, table), *score_histograms(results, table), length_histogram(results, table)]
    assert again == plots
    ids = [element.get("id") for plot in plots for element in ElementTree.fromstring(plot.svg).iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_a_single_scorer_has_no_scatter_and_odd_names_are_escaped(make_candidate, make_results) -> None:  # type: ignore[no-untyped-def]
    answers = {"sft": [make_candidate(f"p{number}", scores={"a<b>&": 1.0}) for number in range(3)]}
    results, table = make_results(answers), align_answers(answers)
    assert score_scatters(results, table) == []
    (plot,) = score_histograms(results, table)
    ElementTree.fromstring(plot.svg)
    assert "a&lt;b&gt;&amp;" in plot.svg


def test_curves_group_what_belongs_together_and_leave_out_totals() -> None:
    plots = training_curves("dpo", CURVE)
    assert {plot.title: [series.label for series in plot.legend] for plot in plots} == {
        "loss": ["loss", "eval_loss"],
        "rewards": ["rewards/chosen", "rewards/rejected"],
    }
    assert [series.dashed for series in plots[0].legend] == [False, True]


def test_curves_skip_what_is_not_a_number() -> None:
    curve = [{"step": step, "loss": float("nan"), "flag": True, "note": "x", "entropy": 1.0 * step} for step in range(5)]
    assert [plot.title for plot in training_curves("ppo", curve)] == ["entropy"]
    assert training_curves("sft", []) == []
