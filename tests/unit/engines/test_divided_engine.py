"""Real vLLM with its model divided among two processes (tensor parallelism), which its back end for CPUs can do as well.

A plan refuses it without GPUs, where it is of no use; the code around vLLM is the same.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapter_folder import adapter

from align.engines.checksum import differing_parts
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings
from align.engines.transformers_engine import TransformersEngine
from align.engines.vllm_engine import VllmEngine
from align.models.folder import ModelFolder
from align.models.stream import stored_weights
from align.testing import tiny_causal_lm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]

TWO_HEADS: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=None, max_completion_tokens=8, num_candidates=1, stop_token_ids=(2,))
REQUESTS = [GenerationRequest([3 + number, 20, 31 + number][: 1 + number % 3], number) for number in range(8)]


def completions(engine: TransformersEngine | VllmEngine) -> list[SampledCompletion]:
    return [row[0] for row in engine.generate(REQUESTS, GREEDY)]


def tokens(engine: TransformersEngine | VllmEngine) -> list[list[int]]:
    return [completion.token_ids for completion in completions(engine)]


def whole(folder: Path) -> list[list[int]]:
    """What the model in a folder says when it is not divided."""
    return tokens(TransformersEngine(ModelFolder(folder), dtype="float32", max_model_tokens=64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "other")):
        tiny_causal_lm(folder / name, seed=seed, tie_word_embeddings=False, **TWO_HEADS)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    cores = sorted(os.sched_getaffinity(0))
    with pytest.MonkeyPatch.context() as patch:
        import vllm.envs

        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        vllm.envs.disable_envs_cache()  # which an engine that another test has started in this process has filled
        engine = VllmEngine(ModelFolder(folder / "base"), dtype="float32", max_model_tokens=64, num_gpus=2)
        yield engine
        engine.close()
    until = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_two_processes_say_what_one_says_also_with_other_weights(engine: VllmEngine, folder: Path) -> None:
    """Weights of a folder are read where they are; a merged adapter and an update of the policy come in files of ours."""
    base, other = whole(folder / "base"), whole(folder / "other")
    assert base != other
    assert tokens(engine) == base
    engine.load_weights(ModelFolder(folder / "other"))
    assert tokens(engine) == other
    engine.load_weights(ModelFolder(adapter(folder / "base", folder / "adapter", "lora")))
    assert tokens(engine) == whole(folder / "adapter") != base
    engine.update_weights(stored_weights(ModelFolder(folder / "other")), version=7)
    assert tokens(engine) == other
    assert {one.weights_version for one in completions(engine)} == {7}
    assert differing_parts(stored_weights(ModelFolder(folder / "other")), engine.weight_checksums()) == []
    assert differing_parts(stored_weights(ModelFolder(folder / "base")), engine.weight_checksums()) != []
