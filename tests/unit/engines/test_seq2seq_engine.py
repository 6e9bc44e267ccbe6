"""Sampling from encoder–decoder models, and which engine takes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.config.sections import Generation
from align.engines.open import open_engine
from align.engines.protocol import GenerationRequest, SamplingSettings
from align.engines.seq2seq_engine import Seq2SeqEngine
from align.engines.task import max_prompt_tokens_for
from align.errors import RecipeError
from align.models.folder import ModelFolder
from align.models.load import load_seq2seq_lm
from align.testing import tiny_seq2seq_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_seq2seq_lm(tmp_path_factory.mktemp("t5") / "base", seed=1)


@pytest.fixture(scope="module")
def engine(base: Path) -> Seq2SeqEngine:
    return Seq2SeqEngine(ModelFolder(base), dtype="float32", max_model_tokens=64)


def test_the_same_requests_give_the_same_tokens(
    engine: Seq2SeqEngine, requests_: list[GenerationRequest], settings: SamplingSettings
) -> None:
    first = engine.generate(requests_, settings)
    assert first == engine.generate(requests_, settings)
    assert [len(candidates) for candidates in first] == [3] * 6
    for candidates in first:
        assert len({tuple(candidate.token_ids) for candidate in candidates}) > 1
        for candidate in candidates:
            assert candidate.finish_reason == ("stop" if candidate.token_ids[-1] == 2 else "length")


def test_tokens_are_drawn_with_the_models_probabilities(engine: Seq2SeqEngine, base: Path, settings: SamplingSettings) -> None:
    model = load_seq2seq_lm(base)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[10, 20]]), decoder_input_ids=torch.tensor([[0]])).logits[0, -1].softmax(-1)
    draws = engine.generate(
        [GenerationRequest([10, 20], seed=0)], replace(settings, max_completion_tokens=1, num_candidates=4000)
    )[0]
    counts = Counter(draw.token_ids[0] for draw in draws)
    likely = expected.topk(5)
    for probability, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        spread = (probability * (1 - probability) / 4000) ** 0.5
        assert abs(counts[token] / 4000 - probability) < 4.5 * spread


def test_logps_are_those_of_the_tokens(engine: Seq2SeqEngine, base: Path, settings: SamplingSettings) -> None:
    """The cache of the decoder gives what a pass over the whole completion gives."""
    from align.models.seq2seq import Seq2SeqCollator, label_logps

    requests = [GenerationRequest([10, 20, 2], seed=4), GenerationRequest([7, 2], seed=9)]
    outputs = engine.generate(requests, replace(settings, with_logps=True))
    rows = [
        (request.prompt_token_ids, completion.token_ids)
        for request, completions in zip(requests, outputs, strict=True)
        for completion in completions
    ]
    expected = label_logps(load_seq2seq_lm(base), Seq2SeqCollator(pad_token_id=0, start_token_id=0)(rows))
    given = [completion.logps for completions in outputs for completion in completions]
    for row, logps in zip(expected.tolist(), given, strict=True):
        assert logps is not None
        assert logps == pytest.approx(row[: len(logps)], abs=1e-4)


def test_the_encoder_reads_a_prompt_once_for_all_its_candidates(base: Path, settings: SamplingSettings) -> None:
    engine = Seq2SeqEngine(ModelFolder(base), dtype="float32", max_model_tokens=64)
    read: list[int] = []
    engine._model.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    engine.generate([GenerationRequest([10, 2], 1), GenerationRequest([11, 12, 2], 2)], replace(settings, num_candidates=8))
    assert read == [2]


def test_auto_takes_transformers_even_where_vllm_is_installed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.engines.open.resolve_engine", lambda name: "vllm")
    assert open_engine("auto", ModelFolder(base), dtype="float32", max_model_tokens=64).name == "transformers"
    with pytest.raises(RecipeError, match="vllm does not serve encoder–decoder models.*T5ForConditionalGeneration"):
        open_engine("vllm", ModelFolder(base), dtype="float32", max_model_tokens=64)


def test_prompt_and_completion_do_not_share_the_room(tmp_path: Path) -> None:
    folder = tiny_seq2seq_lm(tmp_path / "t5", n_positions=32)
    config = Generation(max_prompt_tokens=40, max_completion_tokens=30)
    assert max_prompt_tokens_for(ModelFolder(folder), config) == 32
    with pytest.raises(RecipeError, match="sees 32 tokens, max_completion_tokens is 40"):
        max_prompt_tokens_for(ModelFolder(folder), Generation(max_completion_tokens=40))
