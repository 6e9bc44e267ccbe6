"""Answers that deserve no score: what is tried, and what is said about a scorer that likes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from align.records import Candidate, FunctionCall, Message, ScoredCandidate, ToolCall
from align.report.results import Results, build_results
from align.report.verdict import conclusions
from align.scoring.probes import Probe, probe_scorer
from align.testing import scored_candidate

PROMPTS = [f"{thing}을 잃어버렸어." for thing in ("우산", "지갑", "가방", "시계", "장갑", "안경", "공책", "열쇠")] * 3
KIND = "정말 속상했겠다."


def answers(model: str) -> list[ScoredCandidate]:
    """Half of a model's answers name the thing, the others are kind words that fit any prompt."""
    rows = []
    for number, prompt in enumerate(PROMPTS):
        thing = prompt.split("을")[0]
        text = f"{thing}을 잃어버리다니 {model} 마음이 아프다." if number % 2 else KIND
        rows.append(scored_candidate({"gold": float(number % 2)}, text, prompt_id=f"p{number}", prompt=prompt))
    return rows


def likes_kind_words(candidates: Sequence[Candidate]) -> list[float | None]:
    return [float("속상" in row.completion) for row in candidates]


def likes_the_thing_in_a_sentence(candidates: Sequence[Candidate]) -> list[float | None]:
    """1 for a completion that names the thing and has two of its own words in order."""
    scores: list[float | None] = []
    for row in candidates:
        thing = row.prompt[-1].content.split("을")[0]
        ordered = any(pair == ("마음이", "아프다.") for pair in pairwise(row.completion.split()))
        scores.append(float(row.completion.startswith(f"{thing}을 잃어버리다니") and ordered))
    return scores


def probed(score: object, **fields: bool) -> dict[str, Probe]:
    compared = {name: answers(name) for name in ("sft", "dpo")}
    return {probe.kind: probe for probe in probe_scorer(score, compared, "gold", seed=3, **{"made_up": True, **fields})}  # type: ignore[arg-type]


def test_the_best_single_answer_is_found_and_shown() -> None:
    probe = probed(likes_kind_words)["same_answer"]
    assert probe.text == KIND
    assert probe.scores == [1.0] * len(PROMPTS)


def test_a_prompt_that_ends_with_a_call_is_repeated_as_a_person_reads_it() -> None:
    call = ToolCall(function=FunctionCall(name="weather", arguments={"city": "서울"}))
    (row,) = answers("sft")[:1]
    called = row.model_copy(update={"prompt": [*row.prompt, Message(role="assistant", content="", tool_calls=[call])]})
    seen: list[str] = []

    def score(candidates: Sequence[Candidate]) -> list[float | None]:
        seen.extend(candidate.completion for candidate in candidates)
        return [0.0 for _ in candidates]

    probe_scorer(score, {"sft": [called]}, "gold", seed=3, made_up=True)
    assert 'weather({"city": "서울"})' in seen


def test_a_scorer_that_reads_the_prompt_is_not_fooled() -> None:
    probes = probed(likes_the_thing_in_a_sentence)
    means = {kind: sum(value or 0.0 for value in probe.scores) / len(PROMPTS) for kind, probe in probes.items()}
    # One prompt in eight is about the thing that the single answer names.
    assert means["same_answer"] == pytest.approx(1 / 8)
    assert (means["echo"], means["everything"]) == (0.0, 0.0)
    assert means["shuffled"] < 0.3


def test_answers_of_one_word_are_not_shuffled() -> None:
    numbers = [row.model_copy(update={"completion": str(index)}) for index, row in enumerate(answers("sft"))]

    def zeros(candidates: Sequence[Candidate]) -> list[float | None]:
        return [0.0 for _ in candidates]

    probes = probe_scorer(zeros, {"sft": numbers}, "gold", seed=3, made_up=True)
    assert [probe.kind for probe in probes] == ["same_answer", "echo", "everything"]


def test_the_same_seed_tries_the_same_answers() -> None:
    assert probed(likes_the_thing_in_a_sentence) == probed(likes_the_thing_in_a_sentence)


def test_a_reward_model_gets_sampled_answers_only() -> None:
    seen: list[Candidate] = []

    def reward(candidates: Sequence[Candidate]) -> list[float | None]:
        seen.extend(candidates)
        return [None] * len(candidates)

    assert list(probed(reward, made_up=False)) == ["same_answer"]
    assert all(row.completion_token_ids for row in seen)


def results_with(score: object) -> Results:
    compared = {name: answers(name) for name in ("sft", "dpo")}
    probes = {"gold": list(probed(score).values())}
    return build_results(
        compared,
        baseline="sft",
        recipe="r",
        command=["align"],
        seed=1,
        engine_name="e",
        engine_version="1",
        bootstrap_resamples=200,
        probes=probes,
    )


def test_a_scorer_that_can_be_fooled_is_named_with_the_answer() -> None:
    results = results_with(likes_kind_words)
    assert [probe.kind for probe in results.probes["gold"]] == ["same_answer", "echo", "shuffled", "everything"]
    text = " ".join(conclusions(results))
    assert f"gold can be fooled: the answer “{KIND}” to every prompt scores 1.00 on it, sft 0.50." in text


def test_a_scorer_that_cannot_be_fooled_has_a_line_that_says_what_was_tried() -> None:
    text = " ".join(conclusions(results_with(likes_the_thing_in_a_sentence)))
    assert "can be fooled" not in text
    assert "the best single answer to every prompt 0.12, the prompt repeated 0.00" in text


def test_an_answer_in_a_sentence_is_one_short_line_without_control_characters() -> None:
    results = results_with(likes_kind_words)
    probe = results.probes["gold"][0].model_copy(update={"text": "정말\n속상했겠다.\x1b[31m\x07 " + "가" * 300})
    shown = " ".join(conclusions(results.model_copy(update={"probes": {"gold": [probe]}})))
    assert "“정말 속상했겠다." in shown
    assert not {"\x1b", "\x07", "\n"} & set(shown)
    assert "가" * 250 not in shown
