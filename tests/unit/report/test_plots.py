"""The drawings: safe to put into a page, the same every time, one colour a model, and fit for Korean."""

from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree

import pytest

from align.records import ScoredCandidate
from align.report.answers import align_answers
from align.report.curves import training_curves
from align.report.figure import MARKERS, Plot, marker_path, model_variable
from align.report.plots import cost_frontiers, frontier_of, frontiers, length_histogram, score_histograms, score_scatters
from align.report.results import Results
from align.report.style import row_styles

pytestmark = pytest.mark.slow

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
        "loss": ["loss", "validation loss"],
        "rewards": ["reward of chosen", "reward of rejected"],
    }
    assert [series.dashed for series in plots[0].legend] == [False, True]


def test_curves_skip_what_is_not_a_number() -> None:
    curve = [{"step": step, "loss": float("nan"), "flag": True, "note": "x", "entropy": 1.0 * step} for step in range(5)]
    assert [plot.title for plot in training_curves("ppo", curve)] == ["entropy"]
    assert training_curves("sft", []) == []


PPO = [
    {
        "step": step,
        "objective/kl": 0.1 * step,
        "objective/scores": 1.0 + step,
        "objective/scores_std": 0.5,
        "objective/scores/gold": 5.0 - 0.01 * step,
        "lr": 1e-5,
        "eps": 3.0,
        "policy/approxkl_avg": 0.01,
        "loss/policy_avg": -0.1,
    }
    for step in range(20)
]


def test_ppo_shows_first_whether_the_optimised_score_and_the_watched_one_part() -> None:
    plots = training_curves("ppo", PPO)
    assert [plot.title for plot in plots] == [
        "optimised and watched scores",
        "objective/scores",
        "objective/scores/gold",
        "objective/scores_std",
        "objective/kl",
        "policy/approxkl_avg",
        "loss/policy_avg",
        "lr",
        "eps",
    ]
    assert [(series.label, series.dashed) for series in plots[0].legend] == [
        ("optimised score", False),
        ("gold (watched)", True),
    ]
    assert "Optimised score up, watched score down: reward hacking." in plots[0].description
    up, down = (_last_heights(plots[0])[color] for color in (1, 2))
    assert up > 0 > down, "the drawing must show the proxy rising and gold falling"


def _last_heights(plot: Plot) -> dict[int, float]:
    """How far above its first point (in the drawing, whose y axis points down) every coloured line ends, by colour."""
    heights = {}
    for element in ElementTree.fromstring(plot.svg).iter():
        found = re.search(r"stroke: var\(--model-(\d+)\)", element.get("style", ""))
        points = re.findall(r"[ML] (\S+) (\S+)", element.get("d", ""))
        if found and len(points) > 2:
            heights[int(found.group(1))] = float(points[0][1]) - float(points[-1][1])
    return heights


def test_ppo_that_watches_nothing_has_no_such_picture() -> None:
    curve = [{key: value for key, value in row.items() if key != "objective/scores/gold"} for row in PPO]
    assert "optimised and watched scores" not in [plot.title for plot in training_curves("ppo", curve)]


def test_a_score_that_stays_the_same_is_a_flat_line() -> None:
    curve = [{"step": step, "objective/scores": 0.1 + 0.2, "objective/scores/gold": float(step)} for step in range(9)]
    heights = _last_heights(training_curves("ppo", curve)[0])
    assert heights[1] == 0.0
    assert heights[2] > 0


def test_the_choice_of_a_checkpoint_is_one_picture_with_the_chosen_epoch() -> None:
    curve = [
        {"step": epoch, "score": score, "eval_loss": loss} for epoch, score, loss in ((1, 0.1, 2.0), (2, 0.3, 1.8), (3, 0.4, 1.9))
    ]
    (plot,) = training_curves("best", curve, selected_epoch=3)
    ElementTree.fromstring(plot.svg)
    assert [series.label for series in plot.legend] == ["score (left)", "validation loss (right)", "selected: epoch 3"]
    assert "The line marks epoch 3" in plot.description
    assert _last_heights(plot)[1] > 0 > _last_heights(plot)[2]
    (unmarked,) = training_curves("best", curve)
    assert "selected" not in unmarked.description
    (score_only,) = training_curves("best", [{"step": row["step"], "score": row["score"]} for row in curve], selected_epoch=3)
    assert [series.label for series in score_only.legend] == ["score (left)", "selected: epoch 3"]


def test_the_frontier_has_every_row_whose_distance_is_known(many: tuple[Results, dict[str, list[ScoredCandidate]]]) -> None:
    results, _ = many
    plots = frontiers(results)
    assert [plot.title for plot in plots] == ["Frontier of rm and KL", "Frontier of gold and KL"]
    for plot in plots:
        ElementTree.fromstring(plot.svg)
        assert [series.label for series in plot.legend][:3] == ["sft", "sft best of n", "거절-표집-미세조정"]
        assert "KL bound" in plot.svg
        assert "square-root axis" in plot.svg
        for n in (1, 4, 16):
            assert f">{n}<" in plot.svg
        for name in results.trained_rows:
            assert f"var({row_styles(results)[name].variable})" in plot.svg


def test_there_is_no_frontier_where_no_kl_was_measured(make_candidate, make_results) -> None:  # type: ignore[no-untyped-def]
    answers = {name: [make_candidate(f"p{n}", scores={"gold": float(n)}) for n in range(3)] for name in ("sft", "dpo")}
    assert frontiers(make_results(answers)) == []


def test_twelve_rows_differ_in_colour_or_marker_and_best_of_n_looks_like_the_baseline(
    many: tuple[Results, dict[str, list[ScoredCandidate]]],
) -> None:
    styles = row_styles(many[0])
    assert len(styles) == 12
    filled = [style for style in styles.values() if not style.hollow]
    assert len({style.variable for style in filled}) == len({style.marker for style in filled}) == len(filled) == 9
    assert {style.variable for style in styles.values() if style.hollow} == {styles["sft"].variable}


def test_many_models_never_share_colour_and_marker(make_candidate, make_results) -> None:  # type: ignore[no-untyped-def]
    names = ["sft", *(f"m{number}" for number in range(29))]
    results = make_results({name: [make_candidate("p", scores={"gold": 1.0})] for name in names})
    assert len({(style.variable, style.marker) for style in row_styles(results).values()}) == 30


def test_markers_become_closed_outlines_within_their_box() -> None:
    for marker in MARKERS:
        path = marker_path(marker)
        assert path.startswith("M")
        assert path.endswith("Z")
        assert all(abs(float(number)) <= 0.75 for number in re.findall(r"-?\d+\.\d+", path)), marker


def test_the_frontier_of_cost_are_the_models_that_no_cheaper_one_equals() -> None:
    costs = {"sft": 1.0, "rs": 2.0, "dpo": 2.0, "orpo": 3.0, "ppo": 9.0, "worse": 1.0}
    scores = {"sft": 0.1, "rs": 0.3, "dpo": 0.5, "orpo": 0.4, "ppo": 0.6, "worse": 0.0}
    assert frontier_of(costs, scores) == ["sft", "dpo", "ppo"]
    assert frontier_of({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}) == ["a"], "an equal score for more is not better"


def test_quality_at_equal_cost_has_a_point_per_model(results: Results, many: tuple[Results, object]) -> None:
    rm, gold = cost_frontiers(results)
    assert (rm.title, gold.title) == ("Cost and rm", "Cost and gold")
    assert "in estimated floating-point operations" in rm.description
    ElementTree.fromstring(rm.svg)
    for index in range(len(results.models)):
        assert f"var({model_variable(index)})" in rm.svg
    models = {
        name: row.model_copy(update={"cost": row.cost and row.cost.model_copy(update={"total_flops": None})})
        for name, row in results.models.items()
    }
    assert "in seconds" in cost_frontiers(results.model_copy(update={"models": models}))[0].description
    assert "Best of n is left out" in cost_frontiers(many[0])[0].description
    nothing = {name: row.model_copy(update={"cost": None}) for name, row in results.models.items()}
    assert cost_frontiers(results.model_copy(update={"models": nothing})) == []
