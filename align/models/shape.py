"""The sizes of a model, from its config.json and the headers of its weights; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from align.errors import AlignError
from align.models.folder import ModelFolder

FORWARD, BACKWARD = 2, 4
"""Operations per weight and token (Kaplan et al. 2020, table 1); half of the backward ones are for gradients of weights."""
EMBEDDINGS = ("embed", "wte", "wpe", "relative_attention_bias")
"""Parts of the names of embeddings, of tokens and of positions."""
HEADS = ("lm_head", "embed_out", "score")
"""Names of the modules that turn hidden states into logits or scores."""
NOT_PARAMETERS = ("inv_freq", "masked_bias")
PYTHON_GELUS = ("gelu_new", "gelu_fast", "gelu_python", "quick_gelu")
"""Activations that transformers computes in several elementwise operations, each of which keeps a tensor for backward."""


@dataclass(frozen=True)
class LinearLayer:
    """A weight matrix of the layers; embeddings and the head do not count."""

    name: str
    """Path of the module, without `.weight`."""
    rows: int
    columns: int

    @property
    def parameters(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only language model in numbers; parameters are counted once where they are tied."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    vocabulary: int
    context: int
    """Tokens it can see."""
    is_gated: bool
    """Whether its feed-forward layers multiply two branches, as SwiGLU does."""
    activation: str
    quantizable: bool
    """False for GPT-2's kind of linear layers, which bitsandbytes leaves as they are."""
    linear_layers: tuple[LinearLayer, ...]
    backbone_parameters: int
    """All but an untied head."""
    head_parameters: int
    """0 where the head is the embedding."""
    largest_tensor: int
    """Parameters of the largest tensor."""
    stored_dtype: str = "float32"
    """Of the weights in its folder."""

    @property
    def parameters(self) -> int:
        return self.backbone_parameters + self.head_parameters

    @property
    def linear_parameters(self) -> int:
        return sum(layer.parameters for layer in self.linear_layers)

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_size

    @property
    def key_size(self) -> int:
        return self.num_key_value_heads * self.head_size


def read_shape(folder: ModelFolder) -> ModelShape | None:
    """The shape of the model in a folder (of the base model for an adapter); None where the files do not show it.

    It is None for encoder–decoder models and mixtures of experts too: their passes differ from those counted here.
    """
    try:
        base = folder.base
        config, tensors = base.config, base.tensor_shapes
        if base.encoder_decoder or any("expert" in name for name in tensors):
            return None
        text_config = config.get("text_config")
        settings = text_config if isinstance(text_config, dict) else config
        shape = shape_of(settings, tensors, context=base.context_tokens, tied=base.tied)
        return None if shape is None else replace(shape, stored_dtype=base.stored_dtype)
    except (AlignError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def shape_of(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], *, context: int, tied: bool) -> ModelShape | None:
    """The shape that a configuration and the shapes of its tensors describe.

    Args:
        config: of the language model, with the names that Llama's or GPT-2's configuration uses.
        tensors: shape by name.
        context: tokens the model can see.
        tied: whether the head is the embedding.
    Returns:
        None where a number is missing.
    """

    def find(*names: str) -> int | None:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), None)

    hidden, layers = find("hidden_size", "n_embd"), find("num_hidden_layers", "n_layer")
    heads, vocabulary = find("num_attention_heads", "n_head"), find("vocab_size")
    if not hidden or not layers or not heads or not vocabulary:
        return None
    intermediate = find("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    # GPT-2's files hold causal masks, of four dimensions, among the weights.
    sizes = {name: math.prod(size) for name, size in tensors.items() if len(size) < 4 and not name.endswith(NOT_PARAMETERS)}
    head = {name: size for name, size in sizes.items() if _is_named(name, HEADS)}
    backbone = {name: size for name, size in sizes.items() if name not in head}
    linear = tuple(
        LinearLayer(name.removesuffix(".weight"), *tensors[name])
        for name in backbone
        if len(tensors[name]) == 2 and not any(part in name for part in EMBEDDINGS)
    )
    # Phi-3 and others keep gate and up projection in one matrix, of twice the size.
    feed_forward = sum(layer.parameters for layer in linear if {intermediate, 2 * intermediate} & {layer.rows, layer.columns})
    return ModelShape(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=find("num_key_value_heads") or heads,
        head_size=find("head_dim") or hidden // heads,
        vocabulary=vocabulary,
        context=context,
        # A plain layer has two matrices of hidden by intermediate size, a gated one has three.
        is_gated=feed_forward > 2.5 * layers * hidden * intermediate,
        activation=str(config.get("hidden_act") or config.get("activation_function") or ""),
        quantizable=not any(layer.name.endswith(("c_attn", "c_fc")) for layer in linear),
        linear_layers=linear,
        backbone_parameters=sum(backbone.values()),
        head_parameters=0 if tied else sum(head.values()),
        largest_tensor=max(backbone.values(), default=0),
    )


def _is_named(name: str, modules: tuple[str, ...]) -> bool:
    return any(part in modules for part in name.split("."))
