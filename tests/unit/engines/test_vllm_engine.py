"""Real vLLM, one engine for the whole file: it takes seconds to start."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from align.engines.transformers_engine import TransformersEngine
from align.models.folder import ModelFolder
from align.testing import tiny_causal_lm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]


@pytest.fixture(scope="module")
def engine(project_template: Path):  # type: ignore[no-untyped-def]
    from align.engines.vllm_engine import VllmEngine

    engine = VllmEngine(ModelFolder(project_template / "base"), dtype="float32", max_model_tokens=64)
    yield engine
    engine.close()


def test_the_same_requests_give_the_same_tokens_whatever_came_before(engine, requests_, settings) -> None:  # type: ignore[no-untyped-def]
    first = engine.generate(requests_, settings)
    engine.generate(requests_[::-1], replace(settings, num_candidates=1))
    assert engine.generate(requests_, settings) == first
    assert [len(candidates) for candidates in first] == [3] * 6
    assert len({tuple(candidate.token_ids) for candidate in first[0]}) > 1


def test_completions_end_as_they_say(engine, requests_, settings) -> None:  # type: ignore[no-untyped-def]
    for candidates in engine.generate(requests_, settings):
        for candidate in candidates:
            stopped = candidate.token_ids[-1] == 2
            assert candidate.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(candidate.token_ids) == 6


def test_greedy_equals_transformers_so_no_token_was_added(engine, requests_, settings, project_template: Path) -> None:  # type: ignore[no-untyped-def]
    plain = TransformersEngine(ModelFolder(project_template / "base"), dtype="float32", max_model_tokens=64)
    greedy = replace(settings, temperature=0.0, num_candidates=1)
    assert engine.generate(requests_, greedy) == plain.generate(requests_, greedy)


def test_exchanged_weights_are_the_new_models_with_its_head(engine, requests_, settings, tmp_path, project_template) -> None:  # type: ignore[no-untyped-def]
    vocabulary = json.loads((project_template / "base" / "config.json").read_text())["vocab_size"]
    other = tiny_causal_lm(tmp_path / "other", seed=99, vocab_size=vocabulary)
    greedy = replace(settings, temperature=0.0, num_candidates=1)
    before = engine.generate(requests_, greedy)
    engine.load_weights(ModelFolder(other))
    exchanged = engine.generate(requests_, greedy)
    assert exchanged == TransformersEngine(ModelFolder(other), dtype="float32", max_model_tokens=64).generate(requests_, greedy)
    assert exchanged != before
    engine.load_weights(ModelFolder(project_template / "base"))
    assert engine.generate(requests_, greedy) == before
