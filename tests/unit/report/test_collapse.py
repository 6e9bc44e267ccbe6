"""Red flags: a model that gave something up for its score is named, and one that did not is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from align.records import ScoredCandidate
from align.report.collapse import compression_ratio, distinct_share, frequent_sentence, repetition
from align.report.results import Results
from align.report.verdict import conclusions

Make = Callable[..., ScoredCandidate]
MakeResults = Callable[..., Results]
VARIED = [f"네 {thing:03d}번째 이야기를 들으니 속상하다. I see {thing}." for thing in range(40)]


def answers(make: Make, texts: Sequence[str], score: float) -> list[ScoredCandidate]:
    return [make(f"p{number}", scores={"gold": score}, completion=text) for number, text in enumerate(texts)]


def test_the_most_frequent_sentence_counts_once_in_an_answer() -> None:
    found = frequent_sentence(["Lean on me. Lean on me! Yes.", "“lean on me”! No.", "Rest.", ""])
    assert found is not None
    assert (found.text, found.share) == ("Lean on me.", 0.5)
    assert frequent_sentence(["", "…"]) is None


def test_distinct_answers() -> None:
    assert distinct_share(["가", "가 ", "나", "다"]) == 0.75
    assert distinct_share([]) is None


def test_a_model_that_says_the_same_to_everybody_is_named(make_candidate: Make, make_results: MakeResults) -> None:
    same = [text if number % 3 else "내 곁에 있을게. 다 잘될 거야." for number, text in enumerate(VARIED)]
    results = make_results({"sft": answers(make_candidate, VARIED, 0.1), "ppo": answers(make_candidate, same, 0.9)})
    assert results.models["sft"].red_flags == []
    flags = {flag.kind: flag for flag in results.models["ppo"].red_flags}
    assert flags["frequent_sentence"].value == pytest.approx(14 / 40)
    assert flags["distinct_answers"].value == pytest.approx(27 / 40)
    text = " ".join(conclusions(results))
    assert "But ppo has a red flag: a higher score need not mean better completions." in text
    assert "35 % of its answers say “내 곁에 있을게.” (2 % at most for a sentence of sft)" in text


def test_a_model_that_stays_varied_has_no_flag(make_candidate: Make, make_results: MakeResults) -> None:
    results = make_results({"sft": answers(make_candidate, VARIED, 0.1), "dpo": answers(make_candidate, VARIED[::-1], 0.9)})
    assert results.models["dpo"].red_flags == []
    assert "red flag" not in " ".join(conclusions(results)).lower()


@pytest.mark.parametrize(
    ("before", "after", "flagged"), [(0.45, 0.15, True), (0.45, 0.39, False), (0.9, 0.75, False), (0.12, 0.03, False)]
)
def test_a_rule_that_fewer_answers_pass(
    make_candidate: Make, make_results: MakeResults, before: float, after: float, flagged: bool
) -> None:
    compared = {"sft": answers(make_candidate, VARIED, 0.1), "ppo": answers(make_candidate, VARIED, 0.9)}
    rates = {name: {"gold": {"names_it": rate, "polite": 1.0}} for name, rate in (("sft", before), ("ppo", after))}
    results = make_results(compared, rules=rates)
    assert results.models["ppo"].rules == rates["ppo"]
    assert [flag.detail for flag in results.models["ppo"].red_flags] == (["gold: names_it"] if flagged else [])


def test_a_divergence_far_beyond_the_usual_is_a_flag(make_candidate: Make, make_results: MakeResults) -> None:
    compared = {"sft": answers(make_candidate, VARIED, 0.1), "dpo": answers(make_candidate, VARIED, 0.9)}
    for nats, flagged in ((49.0, False), (51.0, True)):
        results = make_results(compared, kl_to_baseline={"dpo": {f"p{number}": nats for number in range(len(VARIED))}})
        assert [flag.kind for flag in results.models["dpo"].red_flags] == (["kl"] if flagged else [])


def test_rates_of_a_method_are_means_over_its_seeds(make_candidate: Make, make_results: MakeResults) -> None:
    compared = {name: answers(make_candidate, VARIED, 0.1) for name in ("sft", "dpo-1", "dpo-2")}
    rates = {name: {"gold": {"kind": rate}} for name, rate in (("sft", 0.5), ("dpo-1", 0.2), ("dpo-2", 0.4))}
    results = make_results(compared, rules=rates, methods={"dpo": ["dpo-1", "dpo-2"]})
    assert results.models["dpo"].rules["gold"]["kind"] == pytest.approx(0.3)
    assert [flag.value for flag in results.models["dpo"].red_flags] == [pytest.approx(0.3)]


def test_a_model_whose_training_changed_nothing_is_named(make_candidate: Make, make_results: MakeResults) -> None:
    compared = {"sft": answers(make_candidate, VARIED, 0.1), "orpo": answers(make_candidate, VARIED, 0.1)}
    text = " ".join(conclusions(make_results(compared)))
    assert "orpo scores as sft does on every prompt: did its training change anything?" in text
    assert "sft scores as" not in text


def test_a_training_that_moved_too_far_at_once_is_a_flag(make_candidate: Make, make_results: MakeResults) -> None:
    compared = {name: answers(make_candidate, VARIED, 0.1) for name in ("sft", "ppo", "careful")}
    results = make_results(compared, update_kl={"ppo": 0.45, "careful": 0.09})
    assert [flag.kind for flag in results.models["ppo"].red_flags] == ["update_kl"]
    assert results.models["careful"].red_flags == []
    assert "an update of its training moved the policy by 0.45 nats per token" in " ".join(conclusions(results))


def test_compression_and_repetition_by_hand() -> None:
    alike, different = compression_ratio(["그럴 수 있어. 괜찮아."] * 40), compression_ratio(VARIED)
    assert alike is not None
    assert different is not None
    assert alike > 2 * different
    assert compression_ratio([]) is None
    # The first has the four-word sequences abcd twice, bcde, cdea, deab and eabc: one of six was there before.
    assert repetition(["a b c d e a b c d", "a b c d e"]) == pytest.approx(1 / 12)
    assert repetition([]) is None


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("괜찮아 {0}, 정말 괜찮아 {0}, 정말 괜찮아 {0}, 정말 괜찮아 {0}.", "repetition", "its answers repeat themselves, "),
        (
            "It is all right and it will pass, my dear friend {0}.",
            "compression",
            "its answers resemble each other, they compress to 1/",
        ),
    ],
)
def test_a_model_that_repeats_itself_or_the_others_is_named(
    make_candidate: Make, make_results: MakeResults, text: str, kind: str, words: str
) -> None:
    told = answers(make_candidate, [text.format(number) for number in range(40)], 0.9)
    results = make_results({"sft": answers(make_candidate, VARIED, 0.1), "ppo": told})
    assert kind in [flag.kind for flag in results.models["ppo"].red_flags]
    assert words in " ".join(conclusions(results))
