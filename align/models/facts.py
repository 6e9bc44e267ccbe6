"""Facts about a model folder, from its configuration and the headers of its weights. No weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from align.config.architecture import CONFIG_NAME
from align.config.chat import ChatSettings
from align.models.files import GENERATION_CONFIG_NAME
from align.models.folder import NO_BOUND, ModelFolder

# Architectures name the table differently: Llama, GPT-2, T5, Falcon, InternLM, GPT-NeoX and Mamba, in this order.
_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "shared.weight", "word_embeddings.weight", "tok_embeddings.weight"),
    *("embed_in.weight", "embeddings.weight"),
)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_OWN_WIDTH = frozenset({"embedding_size", "word_embed_proj_dim", "embedding_dim", "input_embedding_size"})
"""Settings of models whose embeddings are not as wide as their layers (ALBERT, OPT)."""
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


@dataclass(frozen=True)
class ModelFacts:
    """Sizes and settings of one model. Of an adapter: its base model's."""

    vocab_size: int | None
    """Tokens by config.json."""
    embedding: tuple[str, int] | None
    """Name and rows of the table of token embeddings; None where no tensor has a name that is known for it."""
    tied: bool
    """Whether the head is the embedding table; see `ModelFolder.tied`."""
    has_head: bool
    """Whether the weights have a language model's head of their own."""
    is_language_model: bool
    """Whether config.json names an architecture that writes text, or none."""
    parameters: int
    """Numbers in its weight files."""
    end_token_ids: dict[str, list[int]]
    """Tokens that end a text, by the file that names them; a file that names none is absent."""
    context_tokens: int | None
    """Longest text the model can see, in tokens; None: no bound is set."""
    encoder_decoder: str | None = None
    """The architecture of an encoder–decoder model."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens at which generation_config.json stops."""
    num_layers: int | None = None
    """Layers by config.json; None for encoder–decoder models."""
    stored_layers: int | None = None
    """Layers by the names of the tensors; None where no name has a number."""
    hidden_size: int | None = None
    """By config.json; None where embeddings may have another width."""
    embedding_columns: int | None = None
    """Of the table of token embeddings."""
    chat_settings: ChatSettings = field(default_factory=ChatSettings)
    """What a recipe said of the chat format."""


def read_facts(folder: ModelFolder) -> ModelFacts:
    """The facts of a folder that is safe.

    Raises:
        RecipeError, EnvironmentProblem: if an adapter's base model is gone or refused.
    """
    config = folder.base.config
    text_config = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    # Models of several modalities nest the language model's settings; a null at the top does not override them.
    both = {**(text_config or {}), **{key: value for key, value in config.items() if value is not None}}
    rows = {name: shape[0] if shape else 0 for name, shape in folder.base.tensor_shapes.items()}
    embedding = next(((name, rows[name]) for end in _EMBEDDINGS for name in sorted(rows) if _is(name, end)), None)
    ends = {GENERATION_CONFIG_NAME: folder.generation_config, CONFIG_NAME: folder.config}
    return ModelFacts(
        vocab_size=both["vocab_size"] if isinstance(both.get("vocab_size"), int) else None,
        embedding=embedding,
        tied=folder.base.tied,
        has_head=any(map(names_head, rows)),
        parameters=sum(map(math.prod, folder.base.tensor_shapes.values())),
        is_language_model=not folder.is_reward_model,
        end_token_ids={name: ids for name, file in ends.items() if (ids := _ids(file.get("eos_token_id")))},
        num_layers=None if folder.encoder_decoder else _first_int(both, "num_hidden_layers", "n_layer"),
        stored_layers=_stored_layers(rows),
        hidden_size=None if both.keys() & _OWN_WIDTH else _first_int(both, "hidden_size", "n_embd", "d_model"),
        embedding_columns=None if embedding is None else folder.base.tensor_shapes[embedding[0]][-1],
        stop_token_ids=folder.stop_token_ids,
        chat_settings=folder.chat_settings,
        context_tokens=folder.context_tokens if folder.context_tokens < NO_BOUND else None,
        encoder_decoder=folder.encoder_decoder,
    )


def _first_int(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if type(config.get(name)) is int), None)


def _stored_layers(names: Iterable[str]) -> int | None:
    numbers = [int(found[1]) for name in names if (found := _LAYER.search(name))]
    return max(numbers) + 1 if numbers else None


def _is(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def names_token_table(name: str) -> bool:
    """Whether a tensor of this name is the table of token embeddings."""
    return any(_is(name, end) for end in _EMBEDDINGS)


def names_head(name: str) -> bool:
    """Whether a tensor of this name is a language model's head."""
    return any(_is(name, end) for end in _HEADS)


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool)]
