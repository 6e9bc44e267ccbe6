"""Shapes from files: sizes worked out by hand, and what cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.models.folder import ModelFolder
from align.models.shape import LinearLayer, ModelShape, read_shape, shape_of
from align.testing import tiny_causal_lm

# Width 4, two heads of 2, feed-forward 6, one layer, 10 tokens. Llama's tensors, the head tied to the embedding.
CONFIG = {
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 10,
    "hidden_act": "silu",
}
TENSORS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (10, 4),  # 40
    "model.layers.0.self_attn.q_proj.weight": (4, 4),  # 16
    "model.layers.0.self_attn.k_proj.weight": (2, 4),  # 8
    "model.layers.0.self_attn.v_proj.weight": (2, 4),  # 8
    "model.layers.0.self_attn.o_proj.weight": (4, 4),  # 16
    "model.layers.0.mlp.gate_proj.weight": (6, 4),  # 24
    "model.layers.0.mlp.up_proj.weight": (6, 4),  # 24
    "model.layers.0.mlp.down_proj.weight": (4, 6),  # 24
    "model.layers.0.input_layernorm.weight": (4,),  # 4
    "model.layers.0.post_attention_layernorm.weight": (4,),  # 4
    "model.norm.weight": (4,),  # 4
}


def tiny_shape() -> ModelShape:
    shape = shape_of(CONFIG, TENSORS, context=32, tied=True)
    assert shape is not None
    return shape


def test_parameters_are_those_of_the_tensors() -> None:
    shape = tiny_shape()
    assert shape.parameters == shape.backbone_parameters == 40 + 16 + 8 + 8 + 16 + 3 * 24 + 3 * 4
    assert shape.linear_parameters == 120
    assert shape.linear_layers[1] == LinearLayer("model.layers.0.self_attn.k_proj", 2, 4)
    assert (shape.query_size, shape.key_size, shape.largest_tensor, shape.is_gated) == (4, 2, 40, True)


def test_an_untied_head_counts_and_is_no_linear_layer() -> None:
    shape = shape_of(CONFIG, {**TENSORS, "lm_head.weight": (10, 4)}, context=32, tied=False)
    assert shape is not None
    assert (shape.head_parameters, shape.linear_parameters) == (40, 120)
    assert shape.parameters == tiny_shape().parameters + 40


def test_a_tied_head_that_is_in_the_file_too_counts_once() -> None:
    shape = shape_of(CONFIG, {**TENSORS, "lm_head.weight": (10, 4)}, context=32, tied=True)
    assert shape is not None
    assert shape.parameters == tiny_shape().parameters


def test_buffers_are_no_parameters() -> None:
    buffers = {"transformer.h.0.attn.bias": (1, 1, 32, 32), "model.rotary_emb.inv_freq": (2,)}
    shape = shape_of(CONFIG, {**TENSORS, **buffers}, context=32, tied=True)
    assert shape is not None
    assert shape.parameters == tiny_shape().parameters


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_without_a_number_there_is_no_shape(missing: str) -> None:
    assert shape_of({key: value for key, value in CONFIG.items() if key != missing}, TENSORS, context=32, tied=True) is None


def test_a_folder_is_read_as_torch_counts_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tiny_causal_lm(tmp_path / "base")
    shape = read_shape(ModelFolder(folder))
    weights = load_file(folder / "model.safetensors")
    assert shape is not None
    assert shape.parameters == sum(tensor.numel() for tensor in weights.values())
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert shape.context == 512


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_causal_lm(tmp_path / "base")
    whole = read_shape(ModelFolder(folder))
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_shape(ModelFolder(folder))
    assert whole is not None
    assert found is not None
    assert (found.parameters, sorted(layer.name for layer in found.linear_layers)) == (
        whole.parameters,
        sorted(layer.name for layer in whole.linear_layers),
    )


@pytest.mark.parametrize("damage", ["no folder", "cut header", "no config", "encoder-decoder", "list", "layers"])
def test_what_cannot_be_read_is_none(tmp_path: Path, damage: str) -> None:
    folder = tiny_causal_lm(tmp_path / "base")
    config = folder / "config.json"
    if damage == "no folder":
        folder = tmp_path / "nowhere"
    elif damage == "cut header":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:40])
    elif damage == "no config":
        config.unlink()
    elif damage == "list":
        config.write_text("[]")
    elif damage == "layers":
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 10**400}))
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "is_encoder_decoder": True}))
    assert read_shape(ModelFolder(folder)) is None
