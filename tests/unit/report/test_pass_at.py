"""pass@k: the estimator by hand and by counting subsets, its way through the results, and how it is shown."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from align.records import ScoredCandidate
from align.report.best_of import BestOfPool
from align.report.flat import flat_rows
from align.report.html import write_report
from align.report.pass_at import PassAt, pass_at_k
from align.report.results import Results
from align.report.table import render_table
from align.report.verdict import conclusions
from align.report.viewer import results_cells

Make = Callable[..., ScoredCandidate]
MakeResults = Callable[..., Results]
NAN = float("nan")
ROUNDING = pytest.approx


def test_the_estimate_by_hand() -> None:
    # Of 4 completions 1 is right: half of the 6 pairs hold it, and 3 of the 4 triples. Of 4, 2 are right: 1 pair of 6 has none.
    scores = np.array([[1.0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert pass_at_k(scores, 1, pass_score=1).tolist() == [0.25, 0.5, 0, 1]
    assert pass_at_k(scores, 2, pass_score=1).tolist() == [0.5, 5 / 6, 0, 1]
    assert pass_at_k(scores, 3, pass_score=1).tolist() == [0.75, 1, 0, 1]
    assert pass_at_k(scores, 4, pass_score=1).tolist() == [1, 1, 0, 1]


def test_the_estimate_is_the_share_of_subsets_with_a_right_completion() -> None:
    scores = np.random.default_rng(3).choice([0.0, 0.4, 0.7, 1.0], size=(6, 7))
    for k, pass_score in itertools.product((1, 3, 7), (0.4, 1.0)):
        subsets = [[max(subset) >= pass_score for subset in itertools.combinations(row, k)] for row in scores]
        assert pass_at_k(scores, k, pass_score=pass_score) == ROUNDING(np.mean(subsets, axis=1), abs=1e-12)


def test_completions_without_a_score_are_not_counted() -> None:
    scores = np.array([[1.0, NAN, 0, 0], [NAN, NAN, NAN, 1], [NAN, NAN, NAN, NAN]])
    assert pass_at_k(scores, 1, pass_score=1)[:2].tolist() == [1 / 3, 1]
    assert [math.isnan(value) for value in pass_at_k(scores, 2, pass_score=1)] == [False, True, True]
    assert pass_at_k(scores, 2, pass_score=1)[0] == 2 / 3


def test_many_completions_do_not_overflow() -> None:
    scores = np.array([[1.0] + [0.0] * 1999])
    assert pass_at_k(scores, 1000, pass_score=1).tolist() == [0.5]


@pytest.fixture(scope="module")
def rows(make_candidate: Make) -> Callable[[str], list[ScoredCandidate]]:
    """Candidates of prompts, written as `10 00`: two prompts with two candidates each, of which one is right."""

    def make(prompts: str) -> list[ScoredCandidate]:
        return [
            make_candidate(f"p{number}", scores={"correct": float(digit), "rm": 0.0}, index=index)
            for number, digits in enumerate(prompts.split())
            for index, digit in enumerate(digits)
        ]

    return make


@pytest.fixture(scope="module")
def results(rows: Callable[[str], list[ScoredCandidate]], make_results: MakeResults) -> Results:
    """A baseline that is now and then right, a method of two seeds that is more often right, and best of n."""
    baseline = rows(" ".join(["1000 0000 0010 0000 1100"] * 8))
    return make_results(
        {
            "sft": baseline,
            "grpo_1": rows(" ".join(["1000 0100 0010 0001 1100"] * 8)),
            "grpo_2": rows(" ".join(["1000 0100 0010 0000 1111"] * 8)),
        },
        methods={"grpo": ["grpo_1", "grpo_2"]},
        best_of=BestOfPool([4], "correct", baseline),
        pass_at=PassAt(k=[1, 4], scorer="correct", score=1.0),
    )


def test_values_are_those_of_the_prompts_and_pass_at_1_is_the_mean(results: Results) -> None:
    sft, grpo = results.models["sft"], results.models["grpo"]
    assert sft.scores["pass@4"].mean == ROUNDING(3 / 5)
    assert grpo.scores["pass@4"].mean == ROUNDING((5 / 5 + 4 / 5) / 2)
    assert grpo.scores["pass@4"].delta and grpo.scores["pass@4"].delta.mean == ROUNDING(0.3)
    assert {name: one.scores["pass@4"].mean for name, one in (grpo.replicates or {}).items()} == ROUNDING(
        {"grpo_1": 1.0, "grpo_2": 0.8}
    )
    for row in (sft, grpo):
        score = row.scores["pass@1"]
        assert (score.mean, score.ci95, score.delta) == (
            row.scores["correct"].mean,
            row.scores["correct"].ci95,
            row.scores["correct"].delta,
        )
    # Two seeds: the interval covers training too, so it is wider than that of a seed by itself.
    low, high = grpo.scores["pass@4"].ci95
    own_low, own_high = (grpo.replicates or {})["grpo_2"].scores["pass@4"].ci95
    assert high - low > own_high - own_low


def test_pass_at_k_is_ranked_but_is_no_scorer(results: Results) -> None:
    assert results.scorers == ["correct", "rm"]
    assert results.measures == ["correct", "rm", "pass@1", "pass@4"]
    assert results.ranking["pass@4"].order == ["grpo", "sft"]
    assert results.ranking["pass@4"].against_best_of == {}
    assert "pass@4" not in results.models["sft best of 4"].scores
    assert results.models["grpo"].win_rate and list(results.models["grpo"].win_rate) == ["correct", "rm"]
    assert Results.from_json(results.to_json()) == results


def test_several_rows_are_corrected_as_scores_are(
    rows: Callable[[str], list[ScoredCandidate]], make_results: MakeResults
) -> None:
    answers = {
        name: rows(" ".join([digits] * 10)) for name, digits in (("sft", "10 00 00"), ("a", "10 01 00"), ("b", "11 11 00"))
    }
    found = make_results(answers, pass_at=PassAt(k=[2], scorer="correct", score=1.0))
    of_deltas = {name: found.models[name].scores["pass@2"].delta for name in ("a", "b")}
    smallest = min(delta.p for delta in of_deltas.values() if delta and delta.p)
    assert min(found.ranking["pass@2"].p_to_baseline.values()) == ROUNDING(2 * smallest)


def test_a_prompt_with_too_few_scores_is_left_out_for_all(make_candidate: Make, make_results: MakeResults) -> None:
    def answers(*scores: float | None) -> list[ScoredCandidate]:
        return [make_candidate(f"p{i // 2}", scores={"correct": score}, index=i % 2) for i, score in enumerate(scores)]

    found = make_results(
        {"sft": answers(1, 0, 0, 0), "dpo": answers(1, None, 0, 0)}, pass_at=PassAt(k=[1, 2], scorer="correct", score=1.0)
    )
    assert (found.ranking["pass@1"].prompts, found.ranking["pass@2"].prompts) == (2, 1)
    assert found.models["dpo"].scores["pass@2"].nonfinite == 1
    assert found.models["sft"].scores["pass@2"].mean == 0


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_shows_it_and_fits(results: Results, width: int) -> None:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render_table(results))
    text = stream.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "pass@4" in text and "0.60 [" in text and "pass@4 wins" not in text
    assert "how often at least one of k completions is right (score of correct at least 1), estimated from 4." in " ".join(
        text.split()
    )


def test_sentences_are_about_more_than_one_completion(results: Results) -> None:
    sentences = conclusions(results)
    assert any(sentence.startswith("On pass@4, grpo ") for sentence in sentences)
    assert not any("pass@1" in sentence for sentence in sentences)


def test_data_frames_csv_and_report_have_it(
    results: Results, rows: Callable[[str], list[ScoredCandidate]], tmp_path: Path
) -> None:
    flat = {row["model"]: row for row in flat_rows(results)}
    assert flat["grpo"]["pass@4_delta"] == ROUNDING(0.3)
    assert flat["sft best of 4"]["pass@4"] is None and "pass@4_win_rate" not in flat["sft"]
    header, *cells = results_cells(results)
    assert {len(row) for row in cells} == {len(header)}
    assert cells[0][header.index("pass@4 mean")] == ROUNDING(0.6)
    answers = {name: rows(" ".join(["1000 0000 0010 0000 1100"] * 8)) for name in ("sft", "grpo_1", "grpo_2")}
    write_report(tmp_path / "report.html", results=results, answers=answers, curves={}, stages=[], recipe={})
    page = (tmp_path / "report.html").read_text()
    assert 'colspan="2" scope="colgroup">pass@4</th>' in page
    assert "pass@k: how often at least one of k completions is right" in page
