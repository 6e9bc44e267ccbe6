"""Sampling with transformers alone."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines.protocol import BrokenLogits, GenerationRequest, SamplingSettings
from align.engines.transformers_engine import TransformersEngine, filter_logits
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm


@pytest.fixture(scope="module")
def engine(project_template: Path) -> TransformersEngine:
    return TransformersEngine(ModelFolder(project_template / "base"), dtype="float32", max_model_tokens=64)


def test_the_same_requests_give_the_same_tokens(engine, requests_, settings) -> None:  # type: ignore[no-untyped-def]
    assert engine.generate(requests_, settings) == engine.generate(requests_, settings)


def test_candidates_differ_and_end_as_they_say(engine, requests_, settings) -> None:  # type: ignore[no-untyped-def]
    outputs = engine.generate(requests_, settings)
    assert [len(candidates) for candidates in outputs] == [3] * 6
    for candidates in outputs:
        assert len({tuple(candidate.token_ids) for candidate in candidates}) > 1
        for candidate in candidates:
            stopped = candidate.token_ids[-1] == 2
            assert candidate.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(candidate.token_ids) == 6
            assert 2 not in candidate.token_ids[:-1]


def test_greedy_is_the_most_likely_token_every_time(engine, requests_, settings, project_template: Path) -> None:  # type: ignore[no-untyped-def]
    model = load_causal_lm(project_template / "base").eval()
    outputs = engine.generate(requests_, replace(settings, temperature=0.0, num_candidates=1))
    for request, (completion,) in zip(requests_, outputs, strict=True):
        ids = list(request.prompt_token_ids)
        for token in completion.token_ids:
            with torch.no_grad():
                assert token == model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
            ids.append(token)


def test_a_prompt_gets_logits_of_its_last_token_only(
    project_template: Path, requests_: list[GenerationRequest], settings: SamplingSettings
) -> None:
    """They are all that is read; the tokens are those of an architecture that computes all of them."""
    engine = TransformersEngine(ModelFolder(project_template / "base"), dtype="float32", max_model_tokens=64)
    widths: list[int] = []
    engine._model.get_output_embeddings().register_forward_pre_hook(lambda _, states: widths.append(states[0].shape[1]))
    found = engine.generate(requests_, settings)
    assert set(widths) == {1}
    widths.clear()
    plain = engine._model.forward
    engine._model.forward = lambda **inputs: plain(**inputs)
    assert engine.generate(requests_, settings) == found
    assert max(widths) > 1


def test_a_batch_that_does_not_fit_is_sampled_in_parts(
    engine: TransformersEngine,
    requests_: list[GenerationRequest],
    settings: SamplingSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = engine.generate(requests_, settings)
    begin = TransformersEngine._begin

    def begin_few(self: TransformersEngine, prompts: list[list[int]]) -> Any:
        if len(prompts) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return begin(self, prompts)

    monkeypatch.setattr(TransformersEngine, "_begin", begin_few)
    monkeypatch.setattr("align.engines.transformers_engine.free_memory", lambda: None)  # it collects all of the tests' garbage
    found = engine.generate(requests_, settings)
    assert [[one.token_ids for one in candidates] for candidates in found] == [
        [one.token_ids for one in candidates] for candidates in expected
    ]
    assert "out of memory with" in capsys.readouterr().out
    monkeypatch.setattr(TransformersEngine, "_begin", lambda *_: begin_few(engine, [[]] * 9))
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(requests_, settings)


def test_tokens_are_drawn_with_the_models_probabilities(engine, project_template: Path, settings: SamplingSettings) -> None:  # type: ignore[no-untyped-def]
    model = load_causal_lm(project_template / "base").eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[10, 20]])).logits[0, -1].softmax(-1)
    draws = engine.generate(
        [GenerationRequest([10, 20], seed=0)], replace(settings, max_completion_tokens=1, num_candidates=4000)
    )[0]
    counts = Counter(draw.token_ids[0] for draw in draws)
    likely = expected.topk(5)
    for probability, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        spread = (probability * (1 - probability) / 4000) ** 0.5
        assert abs(counts[token] / 4000 - probability) < 4.5 * spread


def test_top_k_and_top_p_keep_what_they_say(settings: SamplingSettings) -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    kept = lambda changed: torch.isfinite(filter_logits(logits, changed))[0].tolist()  # noqa: E731
    assert kept(settings) == [True] * 4
    assert kept(replace(settings, top_k=2)) == [True, True, False, False]
    assert kept(replace(settings, top_p=0.5)) == [True, False, False, False]
    assert kept(replace(settings, top_p=0.51)) == [True, True, False, False]
    assert kept(replace(settings, top_p=1e-9)) == [True, False, False, False]
    halved = filter_logits(logits, replace(settings, temperature=0.5))[0].exp()
    assert halved.tolist() == pytest.approx([p / 0.345 for p in (0.25, 0.0625, 0.0225, 0.01)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nothing_is_drawn_from_logits_that_are_not_finite(
    engine: TransformersEngine, requests_: list[GenerationRequest], settings: SamplingSettings, temperature: float, value: float
) -> None:
    """Finite weights may give such logits; the completion of the fourth prompt does from its third token on."""
    begin = engine._begin

    def broken(prompts: Any) -> Any:
        following, drawn = begin(prompts), 0

        def logits(last: Any) -> torch.Tensor:
            nonlocal drawn
            found = following(last)
            for row, prompt in enumerate(prompts):
                if drawn == 2 and prompt == requests_[3].prompt_token_ids:
                    found[row] = value
            drawn += 1
            return found

        return logits

    engine._begin = broken  # type: ignore[method-assign]
    try:
        with pytest.raises(BrokenLogits, match=r"base: .*NaN or infinite after 2 tokens of a completion of prompt 4") as caught:
            engine.generate(requests_, replace(settings, temperature=temperature, stop_token_ids=()))
    finally:
        del engine._begin
    assert caught.value.request == 3
    assert pickle.loads(pickle.dumps(caught.value)).request == 3  # it comes from other processes
