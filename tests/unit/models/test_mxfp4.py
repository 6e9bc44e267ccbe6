"""A tiny gpt-oss whose experts are stored in MXFP4, as the published ones are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM

from align.engines.open import engine_for_model
from align.errors import RecipeError
from align.models import load_causal_lm
from align.models.finite import check_finite_weights
from align.models.folder import ModelFolder
from align.testing import tiny_causal_lm

TWO = 0x44
"""Two numbers of four bits, each 2.0."""
DOUBLED = 128
"""A scale: the power of two, and 127."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mxfp4")
    other, folder = tiny_causal_lm(place / "llama"), place / "gpt-oss"
    size = json.loads((other / "config.json").read_text())["vocab_size"]
    config = GptOssConfig(
        vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=64, layer_types=["full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(folder)
    shutil.copy(other / "tokenizer.json", folder)
    shutil.copy(other / "tokenizer_config.json", folder)
    stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            stored[f"{name}_blocks"] = torch.full((experts, outputs, inputs // 32, 16), TWO, dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), DOUBLED, dtype=torch.uint8)
        else:
            stored[name] = tensor.to(torch.bfloat16)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({**written, **quantized}))
    return folder


def test_it_is_read_as_the_numbers_that_it_stands_for_and_learns(folder: Path) -> None:
    check_finite_weights(ModelFolder(folder).check())
    model = load_causal_lm(ModelFolder(folder), dtype="float32")
    experts = model.model.layers[0].mlp.experts
    assert bool((experts.down_proj == 4.0).all())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert float(experts.down_proj.grad.abs().sum()) > 0


def test_vllm_is_not_given_it(folder: Path) -> None:
    assert engine_for_model("auto", ModelFolder(folder)) == "transformers"
    with pytest.raises(RecipeError, match="engine: vllm is not given weights in MXFP4"):
        engine_for_model("vllm", ModelFolder(folder))
