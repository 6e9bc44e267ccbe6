"""Real vLLM on a GPU, in the arithmetic that `auto` chooses there: one engine for the whole file, as it takes long to start."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from align.engines.open import resolve_dtype
from align.engines.protocol import GenerationRequest, SamplingSettings
from align.models.folder import ModelFolder

if TYPE_CHECKING:
    from align.engines.vllm_engine import VllmEngine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]

REQUESTS = [GenerationRequest([10 + i, 20, 30 + i][: 1 + i % 3], seed=1000 * i) for i in range(6)]
SETTINGS = SamplingSettings(
    temperature=1.0, top_p=1.0, top_k=None, max_completion_tokens=6, num_candidates=3, stop_token_ids=(2,)
)


@pytest.fixture(scope="module")
def engine(project_template: Path) -> Iterator[VllmEngine]:
    from align.engines.vllm_engine import VllmEngine

    base = ModelFolder(project_template / "base")
    engine = VllmEngine(base, dtype=resolve_dtype("auto"), max_model_tokens=64, memory_share=0.3)
    yield engine
    engine.close()


def test_it_computes_in_bfloat16() -> None:
    """CPU twin: tests/unit/engines/test_vllm_engine.py, whose engine is the float32 that `auto` is on a CPU."""
    assert resolve_dtype("auto") == "bfloat16"


def test_the_same_requests_give_the_same_tokens(engine: VllmEngine) -> None:
    """CPU twin: tests/unit/engines/test_vllm_engine.py::test_the_same_requests_give_the_same_tokens_whatever_came_before."""
    first = engine.generate(REQUESTS, SETTINGS)
    assert engine.generate(REQUESTS, SETTINGS) == first
    assert [len(candidates) for candidates in first] == [3] * 6
    assert len({tuple(candidate.token_ids) for candidate in first[0]}) > 1


def test_completions_end_as_they_say(engine: VllmEngine) -> None:
    """CPU twin: tests/unit/engines/test_vllm_engine.py::test_completions_end_as_they_say."""
    for candidates in engine.generate(REQUESTS, SETTINGS):
        for candidate in candidates:
            stopped = candidate.token_ids[-1] == 2
            assert candidate.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(candidate.token_ids) == 6


def test_it_gives_its_memory_back_while_it_sleeps(engine: VllmEngine, project_template: Path) -> None:
    """CPU twin: tests/invariants/test_ppo_training.py::test_the_engine_sleeps_while_the_policy_learns."""
    import torch

    greedy = replace(SETTINGS, temperature=0.0, num_candidates=1)
    before, awake = engine.generate(REQUESTS, greedy), torch.cuda.mem_get_info()[0]
    engine.sleep()
    free, total = torch.cuda.mem_get_info()
    assert free - awake > 0.2 * total
    engine.wake_up()
    engine.load_weights(ModelFolder(project_template / "base"))
    assert engine.generate(REQUESTS, greedy) == before


def test_exchanged_weights_are_restored(engine: VllmEngine, project_template: Path, tmp_path: Path) -> None:
    """CPU twin: tests/unit/engines/test_vllm_engine.py::test_exchanged_weights_are_the_new_models_with_its_head."""
    from transformers import AutoConfig

    from align.testing import tiny_causal_lm

    vocab_size = AutoConfig.from_pretrained(project_template / "base").vocab_size
    greedy = replace(SETTINGS, temperature=0.0, num_candidates=1)
    before = engine.generate(REQUESTS, greedy)
    engine.load_weights(ModelFolder(tiny_causal_lm(tmp_path / "other", seed=99, vocab_size=vocab_size)))
    assert engine.generate(REQUESTS, greedy) != before
    engine.load_weights(ModelFolder(project_template / "base"))
    assert engine.generate(REQUESTS, greedy) == before
