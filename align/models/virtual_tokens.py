"""Prefix tuning and prompt tuning: trained vectors in front of every prompt of a frozen model.

Prompt tuning trains embeddings (Lester et al. 2021); prefix tuning trains the keys and values of every layer (Li & Liang 2021,
without their reparametrisation). Both start from randomly drawn tokens, which both papers found better than noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from align.config.peft import VirtualTokens
from align.errors import EnvironmentProblem, RecipeError
from align.models.files import ADAPTER_AGAIN
from align.runtime.device import out_of_memory

NAME = "virtual_tokens"
WEIGHT = "prompt_embeddings"
"""PEFT's name of the only tensor of such an adapter."""
PROBED_TOKENS = 8
# Largest difference, as a share of the states' root mean square, between drawn tokens and the vectors made of them: rounding.
TOLERANCE = 1e-3


class VirtualTokenEncoder(nn.Module):
    """The trained vectors, a submodule of the model that they stand in front of.

    `prompt_embeddings` is [tokens, width] for prompt tuning and [tokens, layers · 2 · heads · head_dim] for prefix tuning, keys
    before values in every layer, as PEFT has it.
    """

    def __init__(self, vectors: Tensor, settings: VirtualTokens) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(vectors)
        self.settings = settings
        self.is_off = False

    def __len__(self) -> int:
        return 0 if self.is_off else self.settings.num_virtual_tokens


def virtual_tokens_of(model: Any) -> VirtualTokenEncoder | None:
    """The vectors in front of a model's prompts, where there are any and they are switched on."""
    encoder: VirtualTokenEncoder | None = getattr(model, NAME, None)
    return encoder if encoder is not None and len(encoder) else None


@contextlib.contextmanager
def without_virtual_tokens(model: Any) -> Iterator[None]:
    """Switch the virtual tokens off inside the block."""
    encoder: VirtualTokenEncoder | None = getattr(model, NAME, None)
    if encoder is None:
        yield
        return
    encoder.is_off = True
    try:
        yield
    finally:
        encoder.is_off = False


def read_vectors(state: Mapping[str, Tensor]) -> Tensor:
    """The vectors in an adapter's file.

    Raises:
        EnvironmentProblem: if there are none.
    """
    if WEIGHT not in state:
        raise EnvironmentProblem(f"the adapter's file has no {WEIGHT}", hint=ADAPTER_AGAIN)
    return state[WEIGHT]


def add_virtual_tokens(model: Any, settings: VirtualTokens, vectors: Tensor | None = None, *, where: str = "") -> None:
    """Put vectors in front of a causal model in place, and freeze everything else.

    Args:
        vectors: see `VirtualTokenEncoder`; by default, those of tokens that are drawn from torch's global generator.
        where: what to name in a refusal.
    Raises:
        RecipeError: if new vectors do not have the effect in this model that the tokens they were taken from have.
    """
    model.requires_grad_(False)
    if vectors is not None:
        model.add_module(NAME, VirtualTokenEncoder(vectors.clone(), settings))
    elif problem := _add_drawn(model, settings):
        raise RecipeError(
            f"{where}: {settings.method} does not go with this architecture ({model.config.model_type}): {problem}",
            hint="Use method: lora.",
        )


@torch.no_grad()
def _add_drawn(model: Any, settings: VirtualTokens) -> str | None:
    """Add the vectors of drawn tokens. Returns what is wrong with them, or None."""
    table = model.get_input_embeddings().weight
    # Drawn on the CPU, so that a seed draws the same tokens on every device.
    ids = torch.randint(len(table), (1, settings.num_virtual_tokens)).to(table.device)
    following = torch.arange(PROBED_TOKENS, device=table.device)[None] % len(table)
    try:
        encoder = VirtualTokenEncoder(_vectors_of_tokens(model, settings, ids).clone(), settings)
        found = states_behind(model, encoder, following, None)
        _cache_of(model, encoder, 1)  # generation starts with it, so it must work too
        behind_tokens = model.base_model(input_ids=torch.cat([ids, following], dim=1), use_cache=False).last_hidden_state
    except Exception as error:  # models raise anything when given keys or embeddings that they do not support
        if out_of_memory(error) is not None:
            raise
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    expected = behind_tokens[:, ids.shape[1] :]
    difference = float((found - expected).abs().max() / expected.square().mean().sqrt())
    model.add_module(NAME, encoder)
    return None if difference <= TOLERANCE else f"the outputs differ by {difference:.1e} of their size from those behind tokens"


def _vectors_of_tokens(model: Any, settings: VirtualTokens, ids: Tensor) -> Tensor:
    if settings.method == "prompt_tuning":
        embedded: Tensor = model.get_input_embeddings()(ids)[0]
        return embedded
    cache = model.base_model(input_ids=ids, use_cache=True).past_key_values
    # [2 · layers, heads, tokens, head_dim], keys and values of a layer next to each other
    pairs = torch.stack([part[0] for layer in cache.layers for part in (layer.keys, layer.values)])
    return pairs.permute(2, 0, 1, 3).flatten(1)


def start_cache(model: Any, rows: int) -> DynamicCache | None:
    """The keys and values of the virtual tokens for `rows` sequences, with which generation starts; None without such tokens."""
    encoder = virtual_tokens_of(model)
    return None if encoder is None else _cache_of(model, encoder, rows)


def _cache_of(model: Any, encoder: VirtualTokenEncoder, rows: int) -> DynamicCache:
    if encoder.settings.method == "prefix_tuning":
        return _prefix_cache(model, encoder, rows)
    embedded = encoder.prompt_embeddings[None].expand(rows, -1, -1)
    cache: DynamicCache = model.base_model(inputs_embeds=embedded, use_cache=True).past_key_values
    return cache


def _prefix_cache(model: Any, encoder: VirtualTokenEncoder, rows: int) -> DynamicCache:
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    pairs = encoder.prompt_embeddings.view(len(encoder), 2 * layers, heads, -1).permute(
        1, 2, 0, 3
    )  # [2·layers, heads, tokens, head_dim]
    cache = DynamicCache(config=config)
    for layer in range(layers):
        key, value = (pairs[2 * layer + part][None].expand(rows, -1, -1, -1) for part in range(2))
        cache.update(key, value, layer)
    return cache


def states_behind(model: Any, encoder: VirtualTokenEncoder, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[batch, seq, width] last hidden states of the real tokens, one sequence a row, behind the virtual ones.

    Args:
        input_ids: [batch, seq].
        attention_mask: [batch, seq], 0 on padding; None: there is none, or none that a real token could see.
    """
    rows, count = len(input_ids), len(encoder)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    mask = torch.cat([attention_mask.new_ones(rows, count), attention_mask], dim=1)
    # Counted over real tokens: rows may be padded on the left.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    if encoder.settings.method == "prefix_tuning":
        # A new cache for every pass: the model appends the row's own keys and values to it.
        output = model.base_model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions[:, count:],
            past_key_values=_prefix_cache(model, encoder, rows),
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state
        return states
    embedded = torch.cat([encoder.prompt_embeddings[None].expand(rows, -1, -1), model.get_input_embeddings()(input_ids)], dim=1)
    output = model.base_model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)
    return output.last_hidden_state[:, count:]  # type: ignore[no-any-return]


def write_virtual_tokens_config(model: Any, encoder: VirtualTokenEncoder, folder: Path) -> None:
    """PEFT's adapter_config.json for the vectors."""
    from peft import PrefixTuningConfig, PromptTuningConfig

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = encoder.prompt_embeddings.shape[1]
    prefix = encoder.settings.method == "prefix_tuning"
    kind: Any = PrefixTuningConfig if prefix else PromptTuningConfig
    described = kind(
        task_type="CAUSAL_LM",
        num_virtual_tokens=encoder.settings.num_virtual_tokens,
        token_dim=width // (2 * config.num_hidden_layers) if prefix else width,
        num_transformer_submodules=1,
        num_attention_heads=heads if prefix else config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        base_model_name_or_path="",
        inference_mode=True,
    )
    described.save_pretrained(str(folder))
