"""results.json from scored candidates: joined by id, checked, and equal to arithmetic done by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

import pytest

from align.errors import DataError
from align.records import ScoredCandidate
from align.report.best_of import BestOfPool
from align.report.results import Results
from align.report.statistics import holm
from align.report.verdict import conclusions
from align.report.wording import row_mark

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
    # Differences 1, 2, 0: mean 1, standard deviation 1.
    assert dpo.delta.standardized == pytest.approx(1.0)
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


def seeds_of(make: Make, **gold: Sequence[float | None]) -> dict[str, list[ScoredCandidate]]:
    return {name: rows(make, {f"p{n}": score for n, score in enumerate(scores)}) for name, scores in gold.items()}


def test_a_method_is_the_mean_of_its_seeds_on_the_same_prompts(make_candidate: Make, make_results: MakeResults) -> None:
    answers = seeds_of(make_candidate, sft=[0.0, 1.0, 2.0], dpo_1=[1.0, 2.0, 3.0], dpo_2=[3.0, 1.0, 5.0], rs=[0.5, 1.5, 2.0])
    kl = {"dpo_1": {"p0": 1.0, "p1": 1.0, "p2": 1.0}, "dpo_2": {"p0": 2.0, "p1": 2.0, "p2": 2.0}}
    results = make_results(
        answers,
        methods={"dpo": ["dpo_1", "dpo_2"]},
        kl_to_baseline=kl,
        train_seconds={"dpo_1": 10.0, "dpo_2": 20.0},
        retention_perplexity={"dpo_1": 5.0},
    )
    alone = make_results(
        answers, kl_to_baseline=kl, train_seconds={"dpo_1": 10.0, "dpo_2": 20.0}, retention_perplexity={"dpo_1": 5.0}
    )
    assert list(results.models) == ["sft", "dpo", "rs"]
    dpo = results.models["dpo"]
    assert dpo.scores["gold"].mean == pytest.approx(2.5)
    assert dpo.scores["gold"].delta is not None
    assert dpo.scores["gold"].delta.mean == pytest.approx(1.5)
    # dpo_1 wins all three; dpo_2 wins, ties, wins.
    assert dpo.win_rate is not None
    assert dpo.win_rate["gold"].mean == pytest.approx(5.5 / 6)
    assert dpo.kl_to_baseline is not None
    assert dpo.kl_to_baseline.mean == pytest.approx(1.5)
    assert dpo.train_seconds == 15.0
    assert dpo.retention_perplexity is None, "one seed was not measured"
    # Nothing is hidden: every seed is there as it would be by itself, and the other rows do not move.
    assert dpo.replicates == {name: alone.models[name] for name in ("dpo_1", "dpo_2")}
    assert results.models["rs"] == alone.models["rs"]
    assert results.ranking["gold"].order == ["dpo", "rs", "sft"]
    assert results.several_seeds == {"dpo": 2}


def test_a_method_of_one_seed_is_that_model_to_the_last_digit(make_candidate: Make, make_results: MakeResults) -> None:
    scores = [float(number % 5) for number in range(20)]
    answers = seeds_of(make_candidate, sft=[*scores], dpo_1=[score + 0.1 * (n % 3) for n, score in enumerate(scores)])
    alone, method = make_results(answers), make_results(answers, methods={"dpo": ["dpo_1"]})
    assert method.models["dpo"].model_copy(update={"replicates": None}) == alone.models["dpo_1"]
    assert method.ranking["gold"].difference == alone.ranking["gold"].difference
    assert method.several_seeds == {}


def test_intervals_of_a_method_are_wider_than_those_of_its_seeds(make_candidate: Make, make_results: MakeResults) -> None:
    wave = [float(number % 5) for number in range(40)]
    spread = {
        f"dpo_{seed}": [score + 1 + shift + 0.01 * (n % 2) for n, score in enumerate(wave)]
        for seed, shift in enumerate((-0.5, 0.0, 0.5))
    }
    results = make_results(seeds_of(make_candidate, sft=[*wave], **spread), methods={"dpo": list(spread)})
    delta = results.models["dpo"].scores["gold"].delta
    assert delta is not None
    assert delta.ci95[0] < 0.3, "three seeds 0.5 apart do not say the difference to within 0.01"
    assert delta.ci95[1] > 1.7
    for one in (results.models["dpo"].replicates or {}).values():
        assert one.scores["gold"].delta is not None
        low, high = one.scores["gold"].delta.ci95
        assert high - low < 0.02


def test_a_prompt_that_one_seed_has_no_score_for_is_left_out_for_all(make_candidate: Make, make_results: MakeResults) -> None:
    answers = seeds_of(make_candidate, sft=[0.0, 1.0, 100.0], dpo_1=[1.0, 2.0, None], dpo_2=[1.0, 2.0, 3.0])
    results = make_results(answers, methods={"dpo": ["dpo_1", "dpo_2"]})
    assert results.models["sft"].scores["gold"].mean == 0.5
    assert results.models["dpo"].scores["gold"].nonfinite == 1
    assert results.ranking["gold"].prompts == 2


def test_methods_that_do_not_fit_are_refused(make_candidate: Make, make_results: MakeResults) -> None:
    answers = seeds_of(make_candidate, sft=[0.0], dpo=[1.0], rs=[1.0])
    cases: dict[str, dict[str, list[str]]] = {
        "method 'm': 'x' is not among the compared models: sft, dpo, rs": {"m": ["x"]},
        "method 'm': 'sft' is the baseline": {"m": ["sft"]},
        "method 'm' has no models": {"m": []},
        "model 'dpo' is given twice, in method 'm' and in 'n'": {"m": ["dpo"], "n": ["dpo"]},
        "two rows of the comparison would be called 'rs'": {"rs": ["dpo"]},
    }
    for message, methods in cases.items():
        with pytest.raises(DataError, match=message):
            make_results(answers, methods=methods)


def pool_of(make: Make, gold: Mapping[str, list[float | None]]) -> list[ScoredCandidate]:
    """Candidates whose length in tokens is their index plus two; the first of every prompt is cut at the limit."""
    return [
        make(name, scores={"gold": score}, index=index, completion="a " * (index + 1), finish="stop" if index else "length")
        for name, scores in gold.items()
        for index, score in enumerate(scores)
    ]


def test_best_of_n_by_hand(make_candidate: Make, make_results: MakeResults) -> None:
    answers = {"sft": rows(make_candidate, {"a": 1.0, "b": 1.0}), "dpo": rows(make_candidate, {"a": 2.0, "b": 2.0})}
    pool = BestOfPool([2, 1, 3], "gold", pool_of(make_candidate, {"b": [0.0, 3.0, 6.0], "a": [1.0, 1.0, 4.0]}))
    results = make_results(answers, best_of=pool)
    assert list(results.models) == ["sft", "sft best of 1", "sft best of 2", "sft best of 3", "dpo"]
    one, two, three = (results.models[f"sft best of {n}"] for n in (1, 2, 3))
    # Prompt a: mean 2; of two: (1 + 4 + 4)/3 = 3; of three 4. Prompt b: 3; (3 + 6 + 6)/3 = 5; 6.
    assert [row.scores["gold"].mean for row in (one, two, three)] == pytest.approx([2.5, 4.0, 5.0])
    assert two.scores["gold"].delta is not None
    assert two.scores["gold"].delta.mean == pytest.approx(3.0)
    # Tokens 2, 3, 4. Of two, a: the two ones share a pair (2.5), else the 4: 3.5; b: 3, 4, 4.
    assert two.completion_tokens.mean == pytest.approx((3.5 + 11 / 3) / 2)
    assert three.completion_tokens.p50 == 4.0
    # Cut at the limit: of two, in a half of one pair in three, in b never.
    assert two.eos_share == pytest.approx(1 - 1 / 12)
    assert three.eos_share == 1.0
    # Against 1.0, a: 1 and 1 tie, 4 wins: of two half · 1/3 + 2/3. b: 0 loses, of two never chosen.
    assert two.win_rate is not None
    assert two.win_rate["gold"].mean == pytest.approx((1 / 6 + 2 / 3 + 1) / 2)
    assert two.kl_to_baseline is None
    assert two.kl_bound == pytest.approx(math.log(2) - 0.5)
    assert two.distinct_2 is two.train_seconds is None
    assert results.ranking["gold"].order == ["dpo", "sft"]
    assert results.ranking["gold"].against_best_of["sft best of 1"].mean == pytest.approx(-0.5)
    assert results.models["dpo"] == make_results(answers).models["dpo"]


def test_best_of_n_counts_what_can_never_be_chosen_and_leaves_out_prompts_without_a_choice(
    make_candidate: Make, make_results: MakeResults
) -> None:
    answers = {"sft": rows(make_candidate, {"a": 1.0, "b": 1.0})}
    pool = BestOfPool([2], "gold", pool_of(make_candidate, {"a": [1.0, None], "b": [None, None]}))
    best = make_results(answers, best_of=pool).models["sft best of 2"]
    assert best.best_of is not None
    assert best.best_of.never_chosen == 3
    assert best.scores["gold"].mean == 1.0
    assert best.scores["gold"].nonfinite == 1
    assert best.completion_tokens.mean == 2.0
    assert best.eos_share == 0.0


def test_candidates_of_best_of_n_that_do_not_fit_are_refused(make_candidate: Make, make_results: MakeResults) -> None:
    answers = {"sft": rows(make_candidate, {"a": 1.0})}
    for message, pool in {
        "other prompts or scorers": BestOfPool([1], "gold", pool_of(make_candidate, {"b": [1.0]})),
        "cannot be taken from 1 candidates": BestOfPool([2], "gold", pool_of(make_candidate, {"a": [1.0]})),
        "by 'rm' cannot be taken": BestOfPool([1], "rm", pool_of(make_candidate, {"a": [1.0]})),
        "no candidate of 'sft' got a finite score": BestOfPool([1], "gold", pool_of(make_candidate, {"a": [None]})),
    }.items():
        with pytest.raises(DataError, match=message):
            make_results(answers, best_of=pool)


def test_results_of_an_earlier_version_without_the_new_fields_are_read(results: Results) -> None:
    value = results.to_json()
    for model in value["models"].values():
        for name in ("kl_bound", "best_of", "replicates"):
            del model[name]
    for ranking in value["ranking"].values():
        del ranking["against_best_of"], ranking["p_to_baseline"], ranking["p_to_best"]
    read = Results.from_json(value)
    assert read.models == results.models
    # Their marks are those of the intervals.
    assert read.ranking["rm"].p_to_baseline == {}


def test_several_comparisons_are_corrected_each_in_its_family(many: tuple[Results, object]) -> None:
    results, _ = many
    ranking = results.ranking["gold"]
    deltas = {name: row.scores["gold"].delta for name, row in results.models.items() if name != "sft"}
    raw = {name: delta.p for name, delta in deltas.items() if delta is not None and delta.p is not None}
    assert ranking.p_to_baseline == holm(raw)
    assert set(ranking.p_to_best) == set(results.models) - {ranking.best}


def test_a_difference_that_one_of_many_shows_by_chance_is_not_called_separated(
    make_candidate: Make, make_results: MakeResults
) -> None:
    wave = [float(number % 5) for number in range(40)]
    # Better on 27 of 40 prompts, worse on 13: p is near 0.02. Five others differ from the baseline by nothing in the mean.
    unsure = [score + (0.5 if number < 27 else -0.5) + 0.02 * (number * 7 % 5 - 2) for number, score in enumerate(wave)]
    others = {f"m{n}": [score + (0.1 * n if number % 2 else -0.1 * n) for number, score in enumerate(wave)] for n in range(1, 6)}
    answers = {"sft": wave, "m0": unsure, **others}
    results = make_results(seeds_of(make_candidate, **answers))
    delta = results.models["m0"].scores["gold"].delta
    assert delta is not None
    assert delta.excludes_zero
    assert results.ranking["gold"].p_to_baseline["m0"] > 0.05
    assert row_mark(results, "m0", "gold") == "~"
    alone = make_results(seeds_of(make_candidate, sft=answers["sft"], m0=answers["m0"]))
    assert row_mark(alone, "m0", "gold") == "▲"
    told = [sentence for sentence in conclusions(results) if "by chance" in sentence]
    assert told[0].startswith("On gold, the interval of m0 (p = 0.")


def test_every_field_of_the_schema_is_described() -> None:
    schema = Results.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["description"]
        for name, field in definition["properties"].items():
            assert field.get("description"), name
