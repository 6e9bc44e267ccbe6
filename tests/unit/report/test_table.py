"""The table in the terminal: its numbers, its sentences, and how it fits."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
from rich.cells import cell_len
from rich.console import Console

from align.records import ScoredCandidate
from align.report.best_of import BestOfPool
from align.report.flat import flat_rows
from align.report.results import Results
from align.report.rows import BestOfResult
from align.report.table import render_table, render_tables
from align.report.verdict import conclusions
from align.report.viewer import results_cells
from align.report.wording import number

Make = Callable[..., ScoredCandidate]
MakeResults = Callable[..., Results]


def printed(results: Results, width: int, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    # The colour is decided here and not by NO_COLOR, which another test may have set.
    color_system: Literal["standard"] | None = "standard" if terminal else None
    Console(file=stream, width=width, force_terminal=terminal, color_system=color_system, no_color=not terminal).print(
        render_table(results.to_json())
    )
    return stream.getvalue()


def of_scores(make: Make, make_results: MakeResults, **gold: Sequence[float | None]) -> Results:
    def rows(scores: Sequence[float | None]) -> list[ScoredCandidate]:
        return [make(f"p{number}", scores={"gold": score}) for number, score in enumerate(scores)]

    return make_results({name: rows(scores) for name, scores in gold.items()})


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_number_is_shown_at_every_width(results: Results, width: int) -> None:
    text = printed(results, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    for header in ("rm", "gold", "KL", "tokens", "EOS", "distinct-2", "retention", "path", "FLOPs"):
        assert header in text
    assert "2 h 02 min" in text and "2.2e16" in text
    sentences = " ".join(text.split())
    assert "path: time of all stages that the row was made from and the baseline was not;" in sentences
    assert "Shared with other models, and paid once: rs-거절표집 25 s, dpo 25 s." in sentences
    assert "\x1b" not in text


def test_several_comparisons_are_told_apart_by_their_stage(make_candidate: Make, make_results: MakeResults) -> None:
    answers = {"sft": [make_candidate("p", scores={"gold": 1.0}), make_candidate("p", scores={"gold": 0.0}, index=1)]}
    comparisons = {
        "greedy": make_results({"sft": answers["sft"][:1]}, temperature=0.0),
        "sampled": make_results(answers, temperature=0.7),
    }

    def shown(names: Sequence[str]) -> list[str]:
        stream = io.StringIO()
        Console(file=stream, width=80).print(render_tables({name: comparisons[name] for name in names}))
        return stream.getvalue().splitlines()

    alone = [printed(results, 80).splitlines() for results in comparisons.values()]
    assert shown(["greedy"]) == alone[0]
    headings = ["greedy: 1 completion per prompt at temperature 0", "sampled: 2 completions per prompt at temperature 0.7"]
    assert shown(["greedy", "sampled"]) == [headings[0], "", *alone[0], "", headings[1], "", *alone[1]]


@pytest.mark.parametrize("width", [80, 120])
def test_columns_stay_aligned_beside_korean_names(results: Results, width: int) -> None:
    lines = printed(results, width).splitlines()
    first = next(line for line in lines if line.lstrip().startswith("model"))
    start = first.index("rm")
    for name in results.models:
        line = next(line for line in lines if line.startswith(name))
        # Counted in terminal cells, where a Korean letter takes two.
        cells_before = cell_len(line[: line.index(f"{results.models[name].scores['rm'].mean:.2f}")])
        assert cells_before == start


def test_at_120_columns_a_model_is_one_row_of_one_table(results: Results) -> None:
    lines = printed(results, 120).splitlines()
    assert sum(line.startswith("model ") for line in lines) == 1
    assert sum(line.startswith("dpo ") for line in lines) == 1


GOLDEN = [
    "model                          gold                  Δ gold         gold wins  tokens    EOS  distinct-2",
    "────────────────────────────────────────────────────────────────────────────────────────────────────────",
    "sft (baseline)    0.00 [0.00, 0.00]                       –                 –     4.0  100 %        0.25",
    "개선              0.50 [0.50, 0.50]  +0.50 [+0.50, +0.50] ▲  100 % [100, 100]     4.0  100 %        0.25",
    "dpo             -0.25 [-0.88, 0.00]  -0.25 [-0.88, +0.00] ~      38 % [6, 50]     4.0  100 %        0.25",
]


def test_the_golden_table_of_one_scorer(make_candidate: Make, make_results: MakeResults) -> None:
    results = of_scores(make_candidate, make_results, sft=[0.0] * 4, 개선=[0.5] * 4, dpo=[0.0, 0.0, 0.0, -1.0])
    assert [line.rstrip() for line in printed(results, 110).splitlines()][:5] == GOLDEN


def test_colour_marks_what_is_separated_and_only_in_a_terminal(results: Results) -> None:
    text = printed(results, 120, terminal=True)
    assert "\x1b[1;32m+" in text
    assert "\x1b[1;31m-" in text


def test_a_model_called_like_markup_is_shown_as_it_is(make_candidate: Make, make_results: MakeResults) -> None:
    results = of_scores(make_candidate, make_results, **{"sft": [0.0, 1.0], "[red]dpo[/red]": [1.0, 2.0]})
    assert "[red]dpo[/red]" in printed(results, 100)


def test_sentences_say_who_beats_whom(make_candidate: Make, make_results: MakeResults) -> None:
    wave = [float(number % 5) for number in range(40)]
    up = [score + 1.0 for score in wave]
    unsure = [score + 1.0 + (0.2 if number % 2 else -0.25) for number, score in enumerate(wave)]
    results = of_scores(make_candidate, make_results, sft=[*wave], rs=[*up], dpo=[*unsure])
    (sentence,) = conclusions(results)
    assert sentence.startswith("On gold, rs beats sft by 1.00 [1.00, 1.00] (40 prompts, 95 % paired bootstrap). ")
    assert " rs is not separated from the second, dpo: 0.0" in sentence
    assert sentence.endswith(", so which of the two is better is not known.")


def test_sentences_do_not_call_a_baseline_that_is_best_beaten(make_candidate: Make, make_results: MakeResults) -> None:
    wave = [float(number % 5) for number in range(40)]
    results = of_scores(make_candidate, make_results, sft=[*wave], dpo=[score - 1.0 for score in wave])
    assert conclusions(results) == [
        "On gold, no model beats sft (40 prompts, 95 % paired bootstrap). "
        "sft is the best, separated from the second, dpo, by 1.00 [1.00, 1.00] (p = 0.004)."
    ]


def test_sentences_name_a_highest_mean_that_is_not_separated(make_candidate: Make, make_results: MakeResults) -> None:
    results = of_scores(
        make_candidate,
        make_results,
        sft=[0.0] * 40,
        rs=[10.0 if number % 2 else -9.0 for number in range(40)],
        dpo=[0.1] * 40,
    )
    (sentence,) = conclusions(results)
    assert sentence.startswith("On gold, rs has the highest mean but is not separated from sft: +0.50 [")
    assert "; dpo beats it by 0.10 [0.10, 0.10]. rs is not separated from the second, dpo: 0.4" in sentence


def test_sentences_warn_of_disagreement_few_prompts_and_prompts_left_out(
    results: Results, make_candidate: Make, make_results: MakeResults
) -> None:
    assert "ppo_long_name rises on rm and falls on gold" in conclusions(results)[2]
    few = conclusions(of_scores(make_candidate, make_results, sft=[0.0, None, 0.0], dpo=[1.0, 1.0, 1.0]))
    assert "(2 of 3 prompts, 95 % paired bootstrap)" in few[0]
    assert few[1].startswith("Only 3 prompts")


def test_one_model_alone_is_described_and_not_compared(make_candidate: Make, make_results: MakeResults) -> None:
    results = of_scores(make_candidate, make_results, sft=[1.0] * 40)
    assert conclusions(results) == [
        "On gold, sft scores 1.00 [1.00, 1.00] (40 prompts, 95 % paired bootstrap); no other model was compared."
    ]
    assert "Δ" not in printed(results, 100)


def test_numbers_and_durations() -> None:
    assert number(-0.0004, 2) == "0.00"
    assert number(-0.0004, 2, signed=True) == "+0.00"
    assert number(-1.5, 1, signed=True) == "-1.5"


@pytest.mark.parametrize("width", [60, 80, 100, 140, 220])
def test_twelve_rows_fit_with_every_name_and_number(many: tuple[Results, object], width: int) -> None:
    results, _ = many
    text = printed(results, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    for name, row in results.models.items():
        assert any(line.startswith(name) for line in text.splitlines()), name
        for scorer in results.scorers:
            assert f"{row.scores[scorer].mean:.2f}" in text
    assert "≤ 1.84" in text
    assert "3 seeds" in text


def test_many_rows_are_one_line_each_in_a_table_per_scorer(many: tuple[Results, object]) -> None:
    results, _ = many
    lines = printed(results, 100).splitlines()
    assert sum(line.startswith("model ") for line in lines) == 2 + 1
    for name in results.models:
        assert sum(line.startswith(f"{name} ") for line in lines[:45]) >= 3, name


def of_seeds(make: Make, make_results: MakeResults, methods: dict[str, list[str]], **gold: Sequence[float]) -> Results:
    rows = {name: [make(f"p{n}", scores={"gold": score}) for n, score in enumerate(scores)] for name, scores in gold.items()}
    return make_results(rows, methods=methods)


def test_sentences_about_a_method_say_its_seeds_and_how_far_they_range(make_candidate: Make, make_results: MakeResults) -> None:
    wave = [float(number % 5) for number in range(40)]
    seeds = {f"dpo_{n}": [score + shift for score in wave] for n, shift in enumerate((0.9, 1.0, 1.1))}
    results = of_seeds(make_candidate, make_results, {"dpo": list(seeds)}, sft=wave, **seeds)
    (sentence,) = conclusions(results)
    assert sentence.startswith("On gold, dpo beats sft by 1.0")
    assert "(40 prompts, 3 seeds of dpo, 95 % two-level bootstrap); its seeds range from +0.9" in sentence
    assert "dpo (3 seeds)" in printed(results, 110)


def test_sentences_warn_of_few_seeds_and_of_models_with_one(make_candidate: Make, make_results: MakeResults) -> None:
    wave = [float(number % 5) for number in range(40)]
    up = {name: [score + shift for score in wave] for name, shift in (("dpo_1", 0.9), ("dpo_2", 1.2), ("rs", 0.5))}
    results = of_seeds(make_candidate, make_results, {"dpo": ["dpo_1", "dpo_2"]}, sft=wave, **up)
    sentences = conclusions(results)
    assert sentences[0].startswith("On gold, dpo has the highest mean but is not separated from sft"), "two seeds say little"
    assert "; rs beats it by 0.50 [0.50, 0.50]" in sentences[0]
    assert sentences[1].startswith("dpo has 2 seeds only")
    assert sentences[2] == "rs was trained with one seed: the interval does not say what another seed would give."


def test_the_table_says_what_its_intervals_cover(make_candidate: Make, make_results: MakeResults) -> None:
    wave = [float(number % 5) for number in range(40)]
    scores = {"sft": wave} | {f"dpo_{n}": [score + 1 + 0.1 * n for score in wave] for n in range(3)}
    alone = of_scores(make_candidate, make_results, **scores)
    assert "Intervals cover the choice of prompts only, not training:" in printed(alone, 200)
    methods = of_seeds(make_candidate, make_results, {"dpo": ["dpo_0", "dpo_1", "dpo_2"]}, **scores)
    assert "Intervals cover prompts and training (3 seeds of dpo). sft is one training;" in printed(methods, 200)
    mixed = of_seeds(make_candidate, make_results, {"dpo": ["dpo_0", "dpo_1"]}, **scores)
    assert "(2 seeds of dpo; those of the other rows cover prompts only)" in printed(mixed, 200)


def test_methods_with_few_seeds_are_named_in_one_sentence(make_candidate: Make, make_results: MakeResults) -> None:
    wave = [float(number % 5) for number in range(40)]
    up = {name: [score + shift for score in wave] for name, shift in (("a1", 0.9), ("a2", 1.2), ("b1", 0.5), ("b2", 0.6))}
    results = of_seeds(make_candidate, make_results, {"dpo": ["a1", "a2"], "ppo": ["b1", "b2"]}, sft=wave, **up)
    few = [sentence for sentence in conclusions(results) if "seeds only" in sentence]
    told = "dpo and ppo have 2 seeds only: how much another seed would change is hardly known, so their intervals are wide."
    assert few == [told]


def test_sentences_say_against_how_many_draws_training_wins(make_candidate: Make, make_results: MakeResults) -> None:
    answers = {
        name: [make_candidate(f"p{n}", scores={"gold": n % 5 + shift}) for n in range(40)]
        for name, shift in (("sft", 0.0), ("dpo", 2.0))
    }
    pool = [
        make_candidate(f"p{n}", scores={"gold": n % 5 + float(index) if n else None}, index=index)
        for n in range(40)
        for index in range(5)
    ]
    results = make_results(answers, best_of=BestOfPool([1, 2, 5], "gold", pool))
    # Best of one is 2 above the baseline on average, of two 3, of five 4.
    sentences = conclusions(results)
    assert sentences[1] == (
        "Against drawing n completions from sft and keeping the best by gold: "
        "on gold, dpo is not separated from n = 1 and is beaten by n = 2 and 5."
    )
    assert sentences[2] == "Best of n: 5 of 200 candidates have no finite gold; never chosen."
    text = printed(results, 140)
    assert "≤ 0.81" in text
    assert "sft best of 5" in text


def test_best_of_n_that_overrates_is_not_called_trained(many: tuple[Results, object], results: Results) -> None:
    row = results.models["ppo_long_name"].model_copy(
        update={"best_of": BestOfResult(n=4, num_candidates=4, scorer="rm", never_chosen=0)}
    )
    sentences = conclusions(results.model_copy(update={"models": {**results.models, "ppo_long_name": row}}))
    assert "ppo_long_name rises on rm and falls on gold: choosing by a scorer finds what that scorer overrates." in sentences


def test_a_win_rate_that_is_length_alone_is_named(make_candidate: Make, make_results: MakeResults) -> None:
    words = {"sft": [4 for _ in range(80)], "long": [2 + 7 * number % 13 for number in range(80)]}
    answers = {
        name: [make_candidate(f"p{n}", scores={"rm": float(count)}, completion="a " * count) for n, count in enumerate(counts)]
        for name, counts in words.items()
    }
    results = make_results(answers)
    model = results.models["long"]
    equal = (model.win_rate_at_equal_length or {})["rm"]
    assert model.win_rate is not None
    assert equal is not None
    assert model.win_rate["rm"].mean > 0.65
    assert equal.mean < model.win_rate["rm"].mean - 0.1
    assert any(sentence.startswith("long wins ") and "at equal length" in sentence for sentence in conclusions(results))
    for width in (60, 80, 100, 140):
        text = printed(results, width)
        assert "LC: share of wins at equal length" in text
        assert f"{100 * equal.mean:.0f} %" in text
        assert max(cell_len(line) for line in text.splitlines()) <= width


def test_the_members_of_an_ensemble_and_how_much_they_disagree(make_candidate: Make, make_results: MakeResults) -> None:
    def rows(*deviations: float | None) -> list[ScoredCandidate]:
        made = [
            make_candidate(f"p{i // 2}", scores={"rm": None if one is None else i % 2, "gold": 1.0}, index=i % 2)
            for i, one in enumerate(deviations)
        ]
        return [row.model_copy(update={"disagreement": {"rm": one}}) for row, one in zip(made, deviations, strict=True)]

    baseline = rows(1.0, 2.0, 0.5, 0.5, 9.0, 9.0)
    answers = {"sft": baseline, "dpo_1": rows(3.0, 3.0, 1.0, 3.0, None, None), "dpo_2": rows(4.0, 4.0, 1.0, 1.0, 1.0, 1.0)}
    results = make_results(answers, methods={"dpo": ["dpo_1", "dpo_2"]}, best_of=BestOfPool([1, 2], "rm", baseline))
    # Candidates, then prompts, then seeds; dpo_1 has no score for the last prompt, which is left out for all.
    means = {name: row.disagreement["rm"].mean for name, row in results.models.items()}
    assert means == pytest.approx({"sft": 1.0, "sft best of 1": 1.0, "sft best of 2": 1.25, "dpo": 2.5})
    assert flat_rows(results)[0]["rm_disagreement"] == pytest.approx(1.0) and "gold_disagreement" not in flat_rows(results)[0]
    header, *cells = results_cells(results)
    assert cells[0][header.index("rm disagreement")] == pytest.approx(1.0) and "gold disagreement" not in header
    text = printed(results, 80)
    assert text.count("members ±") == 2 and "gold members" not in text
    assert "where it is above sft's, they agree less on the model's completions than on sft's." in " ".join(text.split())
    assert "members ±" not in printed(make_results({"sft": [make_candidate("p", scores={"rm": 1.0})]}), 80)


def test_trials_are_shown_where_a_row_had_several(results: Results) -> None:
    assert "trials" not in printed(results, 200)
    dpo = results.models["dpo"]
    assert dpo.cost is not None
    swept = dpo.model_copy(update={"cost": dpo.cost.model_copy(update={"trials": 6})})
    text = printed(results.model_copy(update={"models": {**results.models, "dpo": swept}}), 200)
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(("sft", "dpo"))] == ["1", "6"]
    assert "trials: settings that were tried for the row, of which the best on validation prompts was kept." in " ".join(
        text.split()
    )
