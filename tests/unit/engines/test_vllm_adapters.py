"""Real vLLM with LoRA: merged by us, and served by vLLM without merging, the same tokens come out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from adapter_folder import adapter

from align.engines.protocol import GenerationRequest, SamplingSettings
from align.engines.transformers_engine import TransformersEngine
from align.models.folder import ModelFolder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]

PROMPTS = 50
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=None, max_completion_tokens=12, num_candidates=1, stop_token_ids=(2,))


@pytest.fixture(scope="module")
def requests50(project_template: Path) -> list[GenerationRequest]:
    vocabulary = len(ModelFolder(project_template / "base").tokenizer)
    generator = torch.Generator().manual_seed(3)
    return [
        GenerationRequest(torch.randint(3, vocabulary, (3 + number % 9,), generator=generator).tolist(), number)
        for number in range(PROMPTS)
    ]


def test_an_engine_goes_from_adapter_to_model_and_back(
    project_template: Path, tmp_path: Path, requests50: list[GenerationRequest]
) -> None:
    """It starts with an adapter; every kind of model gives what the transformers engine gives."""
    from align.engines.vllm_engine import VllmEngine

    base = project_template / "base"
    folders = [adapter(base, tmp_path / method, method) for method in ("lora", "qlora")]
    expected = {
        folder: TransformersEngine(ModelFolder(folder), dtype="float32", max_model_tokens=64).generate(requests50, GREEDY)
        for folder in (*folders, base)
    }
    assert expected[folders[0]] != expected[base]
    engine = VllmEngine(ModelFolder(folders[0]), dtype="float32", max_model_tokens=64)
    try:
        assert engine.generate(requests50, GREEDY) == expected[folders[0]]
        for folder in (base, folders[1], folders[0]):
            engine.load_weights(ModelFolder(folder))
            assert engine.generate(requests50, GREEDY) == expected[folder]
    finally:
        engine.close()


def test_vllm_serves_our_adapter_without_merging_and_gives_the_same_tokens(
    project_template: Path, tmp_path: Path, requests50: list[GenerationRequest]
) -> None:  # type: ignore[no-untyped-def]
    import os

    from align.engines.vllm_engine import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    import vllm
    from vllm.lora.request import LoRARequest

    base = project_template / "base"
    folder = adapter(base, tmp_path / "lora", "lora")
    merged = TransformersEngine(ModelFolder(folder), dtype="float32", max_model_tokens=64).generate(requests50, GREEDY)
    threads = torch.get_num_threads()
    llm = vllm.LLM(
        str(base),
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_num_batched_tokens=2048,
        enable_lora=True,
        max_lora_rank=8,
    )
    parameters = vllm.SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=[2], detokenize=False)
    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests50]
    outputs = llm.generate(prompts, parameters, use_tqdm=False, lora_request=LoRARequest("adapter", 1, str(folder)))
    torch.set_num_threads(threads)
    found = [list(output.outputs[0].token_ids) for output in outputs]
    assert found == [completions[0].token_ids for completions in merged]
    plain = TransformersEngine(ModelFolder(base), dtype="float32", max_model_tokens=64)
    assert found != [completions[0].token_ids for completions in plain.generate(requests50, GREEDY)]
